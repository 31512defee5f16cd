package xds

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/xds/internal/body"
	"understudy.mesh/pkg/xds/internal/wire"
)

// sent is what Envoy is sent of a response: all of it.
func sent(t testing.TB, in *Response) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	r := &reply{url: in.Type, nonce: "7", version: "3", removed: in.Removed}
	for _, m := range in.Resources {
		r.resources = append(r.resources, keep(in.Type, m))
	}
	buffers, err := grpcsock.Codec().Marshal(r.frame())
	if err != nil {
		t.Fatal(err)
	}
	out := new(discoveryv3.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(buffers.Materialize(), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestResponseAsItCame: what Envoy is sent are the resources as they came, in whatever pieces, but for the version.
func TestResponseAsItCame(t *testing.T) {
	in := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: clusterType, Nonce: "n", SystemVersionInfo: "istiod's", RemovedResources: []string{"gone", "gone too"},
		ResourceErrors: []*discoveryv3.ResourceError{{}},
	}
	for name, body := range map[string]string{"a": "1", "b": "", "large": strings.Repeat("x", maxChunk), "more": strings.Repeat("y", 3000), "c": strings.Repeat("z", maxChunk/2)} {
		in.Resources = append(in.Resources, &discoveryv3.Resource{Name: name, Version: "istiod's", Resource: &anypb.Any{TypeUrl: clusterType, Value: []byte(body)}})
	}
	in.Resources[1].Ttl, in.Resources[1].Aliases = durationpb.New(1), []string{"alias"} // which the relay does not know
	b, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, 16 << 10, len(b)} {
		resp, err := readPieces(b, size)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Nonce != "n" || resp.Type != clusterType || resp.Foreign() != nil {
			t.Errorf("read %q, %q, %v", resp.Nonce, resp.Type, resp.Foreign())
		}
		want := proto.Clone(in).(*discoveryv3.DeltaDiscoveryResponse)
		want.Nonce, want.SystemVersionInfo, want.ResourceErrors = "7", "3", nil
		for _, m := range want.Resources {
			m.Version, m.Ttl, m.Aliases = wire.VersionText(body.Version(m.Resource.Value)), nil, nil
		}
		if got := sent(t, resp); !proto.Equal(got, want) {
			t.Errorf("in pieces of %d bytes: Envoy gets another response", size)
		}
	}
}

// TestResponseInOnePiece: what is sent is not put together from a piece for each resource.
func TestResponseInOnePiece(t *testing.T) {
	in := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "n"}
	for _, name := range []string{"a", "b", "c", "d"} {
		in.Resources = append(in.Resources, &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: clusterType, Value: make([]byte, 300)}})
	}
	resp, err := Read(in)
	if err != nil {
		t.Fatal(err)
	}
	r := &reply{url: clusterType}
	for _, m := range resp.Resources {
		r.resources = append(r.resources, keep(clusterType, m))
	}
	pieces := func() int {
		buffers, err := grpcsock.Codec().Marshal(r.frame())
		if err != nil {
			t.Fatal(err)
		}
		return len(buffers)
	}
	if got := pieces(); got != 2 {
		t.Errorf("%d pieces, want 2: a head, and the resources", got)
	}
	r.resources = slices.Delete(r.resources, 1, 2)
	if got := pieces(); got != 3 {
		t.Errorf("%d pieces, want 3, as one resource is left out", got)
	}
}

// TestNoResponse: what is no message ends the stream, as by protobuf's own.
func TestNoResponse(t *testing.T) {
	for name, b := range map[string]string{
		"cut off":         "\x12\x05abc",
		"cut off tag":     "\x80",
		"field 0":         "\x02\x00",
		"a group":         "\x0b\x0c",
		"cut off fixed":   "\x0d\x00",
		"not UTF-8":       "\x22\x01\xff",
		"cut off within":  "\x12\x02\x1a\x05",
		"name not UTF-8":  "\x12\x03\x1a\x01\xff",
		"a huge field":    "\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
		"a huge resource": "\x12\x0a\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
	} {
		if _, err := readPieces([]byte(b), 2); !errors.Is(err, wire.ErrResponse) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzReadResponse: what is read is what protobuf reads, and what Envoy is sent of it is the same.
func FuzzReadResponse(f *testing.F) {
	in := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: clusterType, Nonce: "n", RemovedResources: []string{"c"}, Resources: []*discoveryv3.Resource{
		{Name: "a", Version: "1", Resource: &anypb.Any{TypeUrl: clusterType, Value: []byte("body")}}, {Name: "b", Ttl: durationpb.New(1)},
	}}
	b, err := proto.Marshal(in)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, 3)
	f.Add([]byte("\x0d0000\x11000000000\x07"), 1)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		resp, err := readPieces(b, max(size, 1))
		if err != nil {
			return
		}
		want := new(discoveryv3.DeltaDiscoveryResponse)
		if proto.Unmarshal(b, want) != nil {
			return // of what is passed over here it looks into more
		}
		if resp.Nonce != want.Nonce || resp.Type != want.TypeUrl || !slices.Equal(resp.Removed, want.RemovedResources) || len(resp.Resources) != len(want.Resources) {
			t.Fatalf("read %+v, want %v", resp, want)
		}
		if resp.Foreign() != nil {
			return
		}
		for i, m := range sent(t, resp).Resources {
			if m.Name != resp.Resources[i].Name || !bytes.Equal(m.Resource.GetValue(), resp.Resources[i].Body) || m.Resource.GetTypeUrl() != resp.Type {
				t.Fatalf("Envoy gets %v, want %+v", m, resp.Resources[i])
			}
		}
	})
}
