package files

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

func someSnapshot() *publish.Snapshot {
	return &publish.Snapshot{
		Resources: xds.Snapshot{
			build.ClusterType:  {xds.NewStored("c1", []byte{1, 2}), xds.NewStored("c2", nil)},
			build.ListenerType: {xds.NewStored("l1", bytes.Repeat([]byte{9}, 300))},
		},
		Hosts: []table.Host{
			{Name: "a.example", Addrs: []netip.Addr{netip.MustParseAddr("240.240.0.1"), netip.MustParseAddr("2001:2::1")}, VIP: true},
			{Name: "*.b.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.1")}},
			{Name: "none.b.example", Forwarded: true},
		},
	}
}

// sameSnapshot compares as Envoy does: no body is an empty one.
var sameSnapshot = cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(bytes.Equal), cmp.Comparer(func(a, b *xds.Stored) bool { return a.Name == b.Name && a.Equal(b) })}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, want := range map[string]*publish.Snapshot{"empty": {Resources: xds.Snapshot{}}, "some": someSnapshot()} {
		got, exact, err := unmarshalSnapshot(marshaled(want))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !exact {
			t.Errorf("%s: it is not taken for precise", name)
		} else if diff := cmp.Diff(want, got, sameSnapshot); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestNamingListeners wants a listener that names an extension to move, with that, in fields that a release without extensions does not
// read: it would have its Envoy refuse what the filter guards.
func TestNamingListeners(t *testing.T) {
	want := &publish.Snapshot{Resources: xds.Snapshot{
		build.ListenerType:  {xds.NewStored("plain", []byte("a")), xds.NewStored("naming", []byte("..ext..")), xds.NewStored("last", nil)},
		build.ExtensionType: {xds.NewStored("ext", []byte("e"))},
	}}
	data := marshaled(want)
	got, exact, err := unmarshalSnapshot(data)
	if diff := cmp.Diff(want, got, sameSnapshot); err != nil || !exact || diff != "" {
		t.Errorf("%v, %s", err, diff)
	}
	var known []string
	err = eachField(data, func(number protowire.Number, value []byte, _ uint64) error {
		if number == fieldListener {
			m, err := unmarshalMessage(value)
			known = append(known, m.Name)
			return err
		}
		return nil
	})
	if err != nil || strings.Join(known, " ") != "plain last" {
		t.Errorf("an older release reads %v, %v", known, err)
	}
}

// TestGolden wants the bytes that every release reads and writes.
func TestGolden(t *testing.T) {
	want, err := hex.DecodeString("0a080a026331120201020a060a026332120012b3020a026c3112ac02" + strings.Repeat("09", 300) +
		"1a250a09612e6578616d706c651204f0f0000112102001000200000000000000000000000118011a130a0b2a2e622e6578616d706c6512040a000001" +
		"220e6e6f6e652e622e6578616d706c652801")
	if err != nil {
		t.Fatal(err)
	}
	if got := marshaled(someSnapshot()); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestSnapshotOfALaterRelease has fields of every wire type that this one does not know.
func TestSnapshotOfALaterRelease(t *testing.T) {
	unknown := func(b []byte) []byte {
		b = protowire.AppendVarint(protowire.AppendTag(b, 100, protowire.VarintType), 7)
		b = protowire.AppendFixed32(protowire.AppendTag(b, 101, protowire.Fixed32Type), 7)
		b = protowire.AppendFixed64(protowire.AppendTag(b, 102, protowire.Fixed64Type), 7)
		b = protowire.AppendTag(protowire.AppendTag(b, 103, protowire.StartGroupType), 103, protowire.EndGroupType)
		return protowire.AppendString(protowire.AppendTag(b, 104, protowire.BytesType), "x")
	}
	host := protowire.AppendString(protowire.AppendTag(nil, fieldName, protowire.BytesType), "new.example")
	host = unknown(protowire.AppendBytes(protowire.AppendTag(host, fieldAddr, protowire.BytesType), []byte{10, 0, 0, 2}))
	b := unknown(marshaled(someSnapshot()))
	b = protowire.AppendBytes(protowire.AppendTag(b, fieldHost, protowire.BytesType), host)
	got, _, err := unmarshalSnapshot(b)
	if err != nil {
		t.Fatal(err)
	}
	want := someSnapshot()
	want.Hosts = append(want.Hosts, table.Host{Name: "new.example", Addrs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}})
	if diff := cmp.Diff(want, got, sameSnapshot); diff != "" {
		t.Error(diff)
	}
}

func TestDamagedSnapshot(t *testing.T) {
	field := func(number protowire.Number, value ...byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	good := marshaled(someSnapshot())
	for name, b := range map[string][]byte{
		"cut short":              good[:len(good)-1],
		"garbage":                {0xff, 0xff, 0xff},
		"a cluster, no name":     field(fieldCluster, field(fieldBody, 1)...),
		"a host, no address":     field(fieldHost, field(fieldName, 'a')...),
		"a host, no name":        field(fieldHost, field(fieldAddr, 1, 2, 3, 4)...),
		"an address of 3 bytes":  field(fieldHost, append(field(fieldName, 'a'), field(fieldAddr, 1, 2, 3)...)...),
		"a damaged inner length": field(fieldListener, 0x0a, 0x7f),
	} {
		if out, _, err := unmarshalSnapshot(b); !errors.Is(err, errState) {
			t.Errorf("%s: %v, %v; want errState", name, out, err)
		}
	}
}

// FuzzUnmarshalSnapshot: what another release, or a damaged one, sends.
func FuzzUnmarshalSnapshot(f *testing.F) {
	f.Add(marshaled(someSnapshot()))
	f.Add([]byte{})
	f.Add([]byte{0x1a, 0x02, 0x0a, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, _, err := unmarshalSnapshot(b)
		if err != nil {
			return
		}
		again, _, err := unmarshalSnapshot(marshaled(out))
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if diff := cmp.Diff(out, again, sameSnapshot); diff != "" {
			t.Fatal(diff)
		}
	})
}

func marshaled(snap *publish.Snapshot) []byte {
	data, err := marshalSnapshot(snap)
	if err != nil {
		panic(err)
	}
	return data
}
