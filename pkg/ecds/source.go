package ecds

import (
	"bytes"
	"fmt"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/xds"
)

func sameConfig(a, b *anypb.Any) bool {
	return a.GetTypeUrl() == b.GetTypeUrl() && bytes.Equal(a.GetValue(), b.GetValue())
}

// same says whether another version is the same to Envoy.
func (v *version) same(other *version) bool {
	return v != nil && v.Name == other.Name && bytes.Equal(v.Body, other.Body)
}

// made is the resource of an extension whose module is there.
func made(e *extension, m wasm.Module) (*version, error) {
	config, err := e.filter.With(m.Path)
	if err == nil && e.reloads > 0 {
		config, err = renewed(config, e.reloads)
	}
	if err != nil {
		return nil, err
	}
	v, err := resource(e.Name, config)
	if err == nil {
		v.of, v.module = e.Config, m
	}
	return v, err
}

// renewed has a filter run its module in a virtual machine that no other filter has run it in: those that have failed stay so.
func renewed(config *anypb.Any, times int) (*anypb.Any, error) {
	m, err := config.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *httpwasmv3.Wasm:
		m.GetConfig().GetVmConfig().VmId += fmt.Sprintf("#%d", times)
	case *tcpwasmv3.Wasm:
		m.GetConfig().GetVmConfig().VmId += fmt.Sprintf("#%d", times)
	}
	out := &anypb.Any{}
	return out, anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true})
}

func placeholder(name string, network, open bool) (*version, error) {
	config, err := envoyfilter.Placeholder(network, open)
	if err != nil {
		return nil, err
	}
	return resource(name, config)
}

func resource(name string, config *anypb.Any) (*version, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&corev3.TypedExtensionConfig{Name: name, TypedConfig: config})
	if err != nil {
		return nil, err
	}
	return &version{Resource: xds.NewResource(name, body), made: time.Now()}, nil
}
