package sidecar

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
)

func someOutput() *build.Output {
	return &build.Output{
		Clusters:  []build.Message{{Name: "c1", Body: []byte{1, 2}}, {Name: "c2"}},
		Listeners: []build.Message{{Name: "l1", Body: bytes.Repeat([]byte{9}, 300)}},
		Hosts: []mesh.Host{
			{Name: "a.example", Addrs: []netip.Addr{netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("2001:2::1")}, VIP: true},
			{Name: "*.b.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			{Name: "none.b.example"},
		},
	}
}

// sameOutput compares as Envoy does: no body is an empty one.
var sameOutput = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(bytes.Equal)}

func TestOutputRoundTrip(t *testing.T) {
	for name, want := range map[string]*build.Output{"empty": {}, "some": someOutput()} {
		got, exact, err := unmarshalOutput(marshalOutput(want))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !exact {
			t.Errorf("%s: it is not taken for precise", name)
		} else if diff := cmp.Diff(want, got, sameOutput); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestOutputOfALaterRelease has fields of every wire type that this one does not know.
func TestOutputOfALaterRelease(t *testing.T) {
	unknown := func(b []byte) []byte {
		b = protowire.AppendVarint(protowire.AppendTag(b, 100, protowire.VarintType), 7)
		b = protowire.AppendFixed32(protowire.AppendTag(b, 101, protowire.Fixed32Type), 7)
		b = protowire.AppendFixed64(protowire.AppendTag(b, 102, protowire.Fixed64Type), 7)
		b = protowire.AppendTag(protowire.AppendTag(b, 103, protowire.StartGroupType), 103, protowire.EndGroupType)
		return protowire.AppendString(protowire.AppendTag(b, 104, protowire.BytesType), "x")
	}
	host := protowire.AppendString(protowire.AppendTag(nil, fieldName, protowire.BytesType), "new.example")
	host = unknown(protowire.AppendBytes(protowire.AppendTag(host, fieldAddr, protowire.BytesType), []byte{10, 0, 0, 2}))
	b := unknown(marshalOutput(someOutput()))
	b = protowire.AppendBytes(protowire.AppendTag(b, fieldHost, protowire.BytesType), host)
	got, _, err := unmarshalOutput(b)
	if err != nil {
		t.Fatal(err)
	}
	want := someOutput()
	want.Hosts = append(want.Hosts, mesh.Host{Name: "new.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	if diff := cmp.Diff(want, got, sameOutput); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedOutput(t *testing.T) {
	field := func(number protowire.Number, value ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	good := marshalOutput(someOutput())
	for name, b := range map[string][]byte{
		"cut short":              good[:len(good)-1],
		"garbage":                {0xff, 0xff, 0xff},
		"a cluster, no name":     field(fieldCluster, field(fieldBody, 1)...),
		"a host, no address":     field(fieldHost, field(fieldName, 'a')...),
		"a host, no name":        field(fieldHost, field(fieldAddr, 1, 2, 3, 4)...),
		"an address of 3 bytes":  field(fieldHost, append(field(fieldName, 'a'), field(fieldAddr, 1, 2, 3)...)...),
		"a damaged inner length": field(fieldListener, 0x0a, 0x7f),
	} {
		if out, _, err := unmarshalOutput(b); !errors.Is(err, errState) {
			t.Errorf("%s: %v, %v; want errState", name, out, err)
		}
	}
}

// FuzzUnmarshalOutput: what another release, or a damaged one, sends.
func FuzzUnmarshalOutput(f *testing.F) {
	f.Add(marshalOutput(someOutput()))
	f.Add([]byte{})
	f.Add([]byte{0x1a, 0x02, 0x0a, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _, err := unmarshalOutput(b)
		if err != nil {
			return
		}
		again, _, err := unmarshalOutput(marshalOutput(out))
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if diff := cmp.Diff(out, again, sameOutput); diff != "" {
			t.Fatal(diff)
		}
	})
}
