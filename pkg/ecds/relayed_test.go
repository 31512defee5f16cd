package ecds

import (
	"bytes"
	"log/slog"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	tcpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

// relayBench is a Relayed with fake modules.
type relayBench struct {
	*Relayed
	t       *testing.T
	modules *modules
}

func newRelayBench(t *testing.T, off bool) *relayBench {
	b := &relayBench{t: t, modules: newModules()}
	b.Relayed = NewRelayed(Config{Open: func() (Modules, error) { return b.modules, nil }, Ready: &status.Readiness{}, Log: slog.New(slog.DiscardHandler)}, off)
	t.Cleanup(b.Close)
	return b
}

// sent is a resource as istiod sends it: with a module at a URL, and a pull secret.
func sent(t *testing.T, name, url string, network bool, env ...string) xds.Resource {
	t.Helper()
	values := map[string]string{"ISTIO_META_WASM_IMAGE_PULL_SECRET": `{"auths":{"s3cret":{}}}`}
	for i := 0; i < len(env); i += 2 {
		values[env[i]] = env[i+1]
	}
	plugin := &wasmv3.PluginConfig{Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		EnvironmentVariables: &wasmv3.EnvironmentVariables{KeyValues: values},
		Code:                 &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{HttpUri: &corev3.HttpUri{Uri: url}}}},
	}}}
	var m proto.Message = &httpwasmv3.Wasm{Config: plugin}
	if network {
		m = &tcpwasmv3.Wasm{Config: plugin}
	}
	config, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return other(t, name, config)
}

func other(t *testing.T, name string, config *anypb.Any) xds.Resource {
	t.Helper()
	r, err := resource(name, config)
	if err != nil {
		t.Fatal(err)
	}
	return r.Resource
}

// take has the bench take a response, and demands what Envoy gets of it: a text in each resource.
func (b *relayBench) take(resp *xds.Response, want ...string) {
	b.t.Helper()
	b.Take(resp)
	b.has(resp, want...)
}

func (b *relayBench) has(resp *xds.Response, want ...string) {
	b.t.Helper()
	if len(resp.Resources) != len(want) || resp.Type != extensionType {
		b.t.Fatalf("%+v, want %q", resp, want)
	}
	for i, m := range resp.Resources {
		if !bytes.Contains(m.Body, []byte(want[i])) || bytes.Contains(m.Body, []byte("s3cret")) || bytes.Contains(m.Body, []byte("ISTIO_META")) {
			b.t.Errorf("%s is %q, want %s", m.Name, m.Body, want[i])
		}
	}
}

// due waits until something is due, and demands what.
func (b *relayBench) due(want string) {
	b.t.Helper()
	select {
	case <-b.Changed():
	case <-time.After(20 * time.Second):
		b.t.Fatal("nothing has changed")
	}
	resp := b.Due()
	if resp == nil {
		b.t.Fatalf("nothing is due, want %s", want)
	}
	b.has(resp, want)
	if more := b.Due(); more != nil {
		b.t.Errorf("more is due: %+v", more)
	}
}

// TestRelayed: a module is put into what istiod says, late where it comes late; a newer one that fails leaves the one before; the other
// resources of a response go on as they are, and nothing is due without a change.
func TestRelayed(t *testing.T) {
	b := newRelayBench(t, false)
	plain := other(t, "plain", someConfig)
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false), plain}}, "wasm-default-deny", "plain")
	if resp := b.Due(); resp != nil {
		t.Errorf("%+v", resp)
	}
	b.modules.set("oci://r/a:1", "one")
	b.due("/store/one")
	b.Answered(nil)
	if r := b.x.Report(); len(r) != 1 || r[0].Phase != inForce || r[0].Document != "EnvoyFilter a" {
		t.Errorf("%+v", r)
	}
	// The same again, as on a new stream of istiod's.
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}, "/store/one")
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:2", false)}}, "/store/one")
	b.modules.set("oci://r/a:2", "two")
	b.due("/store/two")
	b.Answered(map[string]string{"a": "no"})
	resp := b.Due()
	if resp == nil {
		t.Fatal("what served before is not due")
	}
	b.has(resp, "/store/one")
	b.Answered(nil)
	if r := b.x.Report(); r[0].Phase != stale {
		t.Errorf("%+v", r)
	}
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "b", "oci://r/a:2", true)}}, "wasm-default-deny")
	b.due("/store/two")
	b.take(&xds.Response{Type: extensionType, Removed: []string{"a"}, Resources: []xds.Resource{other(t, "b", someConfig)}}, "plain")
	if resp := b.Due(); resp != nil || len(b.wanted)+len(b.given) > 0 {
		t.Errorf("%+v, %v", resp, b.wanted)
	}
	if r := b.x.Report(); len(r) > 0 || b.modules.retained != "" {
		t.Errorf("what is gone is reported, or in use: %+v, %s", r, b.modules.retained)
	}
	untouched := &xds.Response{Type: "another", Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}
	before := untouched.Resources[0].Body
	if b.Take(untouched); !bytes.Equal(untouched.Resources[0].Body, before) {
		t.Error("a resource of another type was changed")
	}
}

// TestRelayedSuccessor: a newcomer whose Envoy runs what that of the generation before ran leaves it so until it has the module that is wanted
// itself, knows what is wanted before istiod has said it, and gives nothing up that cannot be had for the moment.
func TestRelayedSuccessor(t *testing.T) {
	older := newRelayBench(t, false)
	older.modules.set("oci://r/a:1", "one")
	resp := &xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false), sent(t, "late", "oci://r/late", false)}}
	older.take(resp, "wasm-default-deny", "wasm-default-deny")
	older.due("/store/one")
	older.Answered(nil)
	data := older.Export()
	running := []xds.Resource{older.given["a"], older.given["late"]}

	b := newRelayBench(t, false)
	b.Import(data, running)
	<-b.Changed()
	if resp := b.Due(); resp != nil {
		t.Errorf("Envoy is given what it has: %+v", resp)
	}
	r := b.x.Report()
	if len(r) != 2 || r[0].SHA256 != "one" || r[0].Instead != "" || r[1].Instead != "deny" || r[0].Document != "EnvoyFilter a" {
		t.Errorf("%+v", r)
	}
	again := &xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false), sent(t, "late", "oci://r/late", false)}}
	b.take(again, "/store/one", "wasm-default-deny")
	b.modules.set("oci://r/a:1", "one")
	<-b.Changed()
	if resp := b.Due(); resp != nil {
		t.Errorf("Envoy is given what it has: %+v", resp)
	}
	if r := b.x.Report(); r[0].Phase != inForce || b.x.modules.(*modules).retained != "one" {
		t.Errorf("%+v, %s in use", r, b.modules.retained)
	}
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:2", false)}}, "/store/one")
	b.modules.set("oci://r/a:2", "two")
	b.due("/store/two")

	// Of a release that does not tell what is wanted, and of one that tells nonsense.
	for _, data := range []string{"", "nonsense", `[{"name":"a","sha256":"one"}]`, `[{"name":"a","sha256":"one","wanted":"/w=="}]`} {
		b := newRelayBench(t, false)
		b.Import([]byte(data), running)
		b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}, "/store/one")
		b.take(&xds.Response{Type: extensionType, Removed: []string{"a", "late"}})
		b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}, "wasm-default-deny")
	}
}

var someConfig = &anypb.Any{TypeUrl: "type.googleapis.com/a.B", Value: []byte("plain")}

// TestRelayedBad: what can be no filter never reaches Envoy, which may have a secret in it; it leaves what was there, or refuses everything.
func TestRelayedBad(t *testing.T) {
	b := newRelayBench(t, false)
	const poll = "ISTIO_META_UNDERSTUDY_WASM_POLL"
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", true, poll, "often")}}, "envoy.extensions.filters.network.rbac.v3.RBAC")
	b.modules.set("oci://r/a:1", "one")
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", true)}}, "wasm-default-deny")
	b.due("/store/one")
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", true, poll, "often")}}, "/store/one")
	garbage := xds.NewResource("c", []byte{0xff})
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{garbage}}, "\xff")
}

// TestRelayedOff: without Wasm everything passes, and nothing is opened.
func TestRelayedOff(t *testing.T) {
	b := newRelayBench(t, true)
	b.take(&xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}, "wasm-default-allow")
	b.Answered(nil)
	b.Served()
	if b.Due() != nil || len(b.Pages()) > 0 || b.Samples() != nil {
		t.Error("something is there")
	}
}

// TestRelayedNil leaves everything as it is.
func TestRelayedNil(t *testing.T) {
	var r *Relayed
	resp := &xds.Response{Type: extensionType, Resources: []xds.Resource{sent(t, "a", "oci://r/a:1", false)}}
	before := resp.Resources[0].Body
	r.Take(resp)
	r.Answered(nil)
	r.Served()
	r.Import(nil, nil)
	r.Close()
	if !bytes.Equal(resp.Resources[0].Body, before) || r.Changed() != nil || r.Due() != nil || len(r.Pages()) > 0 || r.Samples() != nil || r.Export() != nil {
		t.Errorf("%+v", resp)
	}
}

func TestDocumentOf(t *testing.T) {
	for name, want := range map[string]string{
		"extensions.istio.io/wasmplugin/shop.headers.v1":                "WasmPlugin shop/headers.v1",
		"extensions.istio.io/trafficextension/shop.headers":             "TrafficExtension shop/headers",
		"istio.alibabacloud.com/asmfilterdeployment/default.details-v1": "ASMFilterDeployment default/details-v1",
		"mine": "EnvoyFilter mine",
	} {
		if got := documentOf(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}
