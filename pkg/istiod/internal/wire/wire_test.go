package wire

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// TestNames has Istio's short forms, of Kubernetes' hosts below the cluster's domain only.
func TestNames(t *testing.T) {
	var b []byte
	b = appendHost(b, "Web.default.svc.cluster.local", kubernetes, "web", "default", "10.0.0.1", "fd00::1", "10.0.0.0/8")
	b = appendHost(b, "db.other.svc.cluster.local", kubernetes, "db", "other", "10.0.0.2")
	b = appendHost(b, "db-0.db.other.svc.cluster.local", kubernetes, "db-0.db", "other", "10.0.0.3")
	b = appendHost(b, "Ext.example.com", "External", "ext", "default", "240.240.0.9") // the last one counts
	b = appendHost(b, ".", "External", "", "", "240.240.0.8")
	b = appendHost(b, "ext.example.com", "External", "ext", "default", "240.240.0.1")
	b = appendHost(b, "*.wild.example", "External", "", "", "240.240.0.2")
	b = appendHost(b, "web", "External", "", "", "10.9.9.9") // goes before the short form
	b = appendHost(b, "far.clusterset.local", kubernetes, "", "default", "10.0.0.4")
	b = appendHost(b, "dot.default.svc.cluster.local.", kubernetes, "dot", "default", "10.0.0.5")
	b = appendHost(b, "empty.example", "External", "", "", "not an address")
	b = protowire.AppendVarint(protowire.AppendTag(b, 100, protowire.VarintType), 7)
	hosts, err := Names(b, Pod{Namespace: "default", Domain: "svc.cluster.local"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range hosts {
		addrs := make([]string, len(h.Addrs))
		for i, a := range h.Addrs {
			addrs[i] = a.String()
		}
		got = append(got, h.Name+"="+strings.Join(addrs, ","))
	}
	want := []string{
		"*.wild.example=240.240.0.2",
		"db-0.db.other=10.0.0.3", "db-0.db.other.svc=10.0.0.3", "db-0.db.other.svc.cluster.local=10.0.0.3",
		"db.other=10.0.0.2", "db.other.svc=10.0.0.2", "db.other.svc.cluster.local=10.0.0.2",
		"ext.example.com=240.240.0.1", "far.clusterset.local=10.0.0.4",
		"web=10.9.9.9", "web.default=10.0.0.1,fd00::1", "web.default.svc=10.0.0.1,fd00::1", "web.default.svc.cluster.local=10.0.0.1,fd00::1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// FuzzNames: what istiod sends, or something that is not istiod.
func FuzzNames(f *testing.F) {
	f.Add(appendHost(nil, "a.default.svc.cluster.local", kubernetes, "a", "default", "10.0.0.1"))
	f.Add([]byte{0x0a, 0x7f})
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := Names(b, Pod{Namespace: "default", Domain: "svc.cluster.local"})
		if err != nil && !errors.Is(err, errNames) {
			t.Fatal(err)
		}
		for i, h := range hosts {
			if h.Name == "" || len(h.Addrs) == 0 || i > 0 && h.Name <= hosts[i-1].Name || slices.Contains(h.Addrs, netip.Addr{}) {
				t.Fatalf("host %d is %+v", i, h)
			}
		}
	})
}

func appendHost(b []byte, host, registry, short, namespace string, addrs ...string) []byte {
	field := func(b []byte, number protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), value)
	}
	var info []byte
	for _, a := range addrs {
		info = field(info, fieldIP, a)
	}
	info = field(field(field(info, fieldRegistry, registry), fieldShortName, short), fieldNamespace, namespace)
	return field(b, fieldTable, string(field(field(nil, fieldKey, host), fieldValue, string(info))))
}

func FuzzResourceName(f *testing.F) {
	f.Add([]byte{10, 1, 'a'})
	f.Add([]byte{10, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var c clusterv3.Cluster
		if proto.Unmarshal(b, &c) == nil && c.GetName() != ResourceName(b) {
			t.Errorf("%q: the name is %q, not %q", b, c.GetName(), ResourceName(b))
		}
	})
}
