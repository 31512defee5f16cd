package share

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"os"

	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/xds"
)

func entryOf(host string, port int, protocol string, more ...string) string {
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s}\nspec:\n  hosts: [%q]\n  ports: [{number: %d, name: p, protocol: %s}]\n  resolution: DNS\n%s",
		strings.ReplaceAll(strings.ReplaceAll(host, ".", "-"), "*", "w"), host, port, protocol, strings.Join(more, ""))
}

// builder makes snapshots as the agent does.
type builder struct {
	t    testing.TB
	dir  string
	s    *mesh.Source
	b    *build.Builder
	vips map[string][]netip.Addr
}

func newBuilder(t testing.TB) *builder {
	t.Helper()
	o := mesh.Options{
		Namespace: "default", IPv4: true, IPv6: true, AutoAllocate: true, InboundPort: 15006, OutboundPort: 15001,
		ConnectTimeout: time.Second, DetectionTimeout: time.Second, ReservedPorts: []uint16{15090},
		VIPRanges: []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")},
	}
	dir := t.TempDir()
	s, err := mesh.NewSource(dir, o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &builder{t: t, dir: dir, s: s, b: build.New(o), vips: map[string][]netip.Addr{}}
}

// snapshot is of the given documents; a host keeps its VIPs.
func (b *builder) snapshot(documents ...string) xds.Snapshot {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "x.yaml"), []byte(strings.Join(documents, "")), 0o600); err != nil {
		b.t.Fatal(err)
	}
	r, err := b.s.Load()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, h := range r.AutoHosts() {
		if b.vips[h] == nil {
			n := len(b.vips) + 1
			b.vips[h] = []netip.Addr{netip.AddrFrom4([4]byte{240, 240, byte(n >> 8), byte(n)}), netip.MustParseAddr(fmt.Sprintf("2001:2::%x", n))}
		}
	}
	out, err := b.b.Build(r, b.vips, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return out.Resources
}

func newSharer(t testing.TB) *Sharer {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "xds"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return New(xds.New(l, build.Types(), slog.New(slog.DiscardHandler)), []uint16{15090}, slog.New(slog.DiscardHandler))
}

func mustShare(t testing.TB, s *Sharer, snap xds.Snapshot) xds.Snapshot {
	t.Helper()
	out, err := s.share(snap)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func namesOf(list []*xds.Stored) (names []string) {
	for _, r := range list {
		names = append(names, r.Name)
	}
	slices.Sort(names)
	return names
}

// TestShape: which listeners Envoy gets of which documents. The documents before are another state of the same Sharer.
func TestShape(t *testing.T) {
	a, b := entryOf("a.x", 80, "HTTP"), entryOf("b.x", 80, "HTTP")
	for _, tc := range []struct {
		name      string
		documents []string
		want      string // but for the two that capture
		routes    string
	}{
		{"none", nil, "", ""},
		{"HTTP shares", []string{a, b, entryOf("c.x", 8080, "GRPC")}, "0.0.0.0_80 0.0.0.0_8080", "80 8080"},
		{"TCP and TLS do not", []string{a, entryOf("c.x", 80, "TCP"), entryOf("d.x", 443, "TLS")}, "0.0.0.0_80 240.240.0.2_80 240.240.0.3_443", "80"},
		{"beside hosts without an address", []string{a, entryOf("*.w.x", 80, "HTTP", "  endpoints: [{address: 1.2.3.4}]\n")}, "0.0.0.0_80", "80"},
		{"a declared address", []string{a, entryOf("c.x", 80, "HTTP", "  addresses: [10.0.0.1]\n")}, "0.0.0.0_80", "80"},
		{"an address of several hosts", []string{entryOf("c.x", 80, "HTTP", "  addresses: [10.0.0.1]\n"), entryOf("d.x", 80, "HTTP", "  addresses: [10.0.0.1]\n")}, "10.0.0.1_80", ""},
		{"a port that others bind", []string{entryOf("c.x", 15090, "HTTP")}, "240.240.0.1_15090", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source, s := newBuilder(t), newSharer(t)
			snap := source.snapshot(tc.documents...)
			out := mustShare(t, s, snap)
			got := slices.DeleteFunc(namesOf(out[build.ListenerType]), func(n string) bool { return strings.HasPrefix(n, "virtual") })
			if strings.Join(got, " ") != tc.want || strings.Join(namesOf(out[build.RouteType]), " ") != tc.routes {
				t.Errorf("listeners %q, routes %q, want %q and %q", got, namesOf(out[build.RouteType]), tc.want, tc.routes)
			}
			again := mustShare(t, s, snap)
			for url, list := range out {
				for i, r := range list {
					if r != again[url][i] {
						t.Errorf("%s was made once more", r.Name)
					}
				}
			}
			if one := source.snapshot(a); !slices.Equal(namesOf(mustShare(t, s, one)[build.RouteType]), []string{"80"}) {
				t.Error("of another state before")
			}
		})
	}
}

// chains are the filter chains of a listener by name.
func chains(t testing.TB, snap xds.Snapshot, name string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, r := range snap[build.ListenerType] {
		if r.Name != name {
			continue
		}
		l := &listenerv3.Listener{}
		if err := proto.Unmarshal(bodyOf(r), l); err != nil {
			t.Fatal(err)
		}
		if err := l.ValidateAll(); err != nil {
			t.Error(err)
		}
		for _, c := range l.GetFilterChains() {
			raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			if c.GetName() == "" || out[c.GetName()] != "" || c.GetFilterChainMatch() != nil {
				t.Errorf("a filter chain is called %q, and matched by %v", c.GetName(), c.GetFilterChainMatch())
			}
			out[c.GetName()] = string(raw)
		}
	}
	return out
}

// TestNeighbourStays: a host that comes or goes changes no filter chain, whose connections Envoy would drain, and no
// listener of another port.
func TestNeighbourStays(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	a, web := entryOf("a.x", 80, "HTTP"), entryOf("web.x", 8080, "GRPC-WEB")
	before := mustShare(t, s, source.snapshot(a, web))
	for _, documents := range [][]string{{a, web, entryOf("b.x", 80, "HTTP")}, {web, entryOf("b.x", 80, "HTTP")}, {web, a}} {
		now := mustShare(t, s, source.snapshot(documents...))
		for _, name := range []string{"0.0.0.0_80", "0.0.0.0_8080"} {
			was, is := chains(t, before, name), chains(t, now, name)
			if len(is) != 2 {
				t.Errorf("%s has %d filter chains, want one for its hosts and one that refuses", name, len(is))
			}
			for chain := range is {
				if was[chain] != is[chain] {
					t.Errorf("%s: the filter chain %s changes", name, chain)
				}
			}
		}
	}
}

// TestTemplates: hosts of one port that differ in more than their route have filter chains of their own.
func TestTemplates(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	out := mustShare(t, s, source.snapshot(entryOf("a.x", 80, "HTTP"), entryOf("b.x", 80, "HTTP"), entryOf("web.x", 80, "GRPC-WEB")))
	if got := chains(t, out, "0.0.0.0_80"); len(got) != 3 {
		t.Errorf("%d filter chains", len(got))
	}
	for _, r := range out[build.RouteType] {
		rc := &routev3.RouteConfiguration{}
		if err := proto.Unmarshal(bodyOf(r), rc); err != nil {
			t.Fatal(err)
		}
		table := rc.GetVirtualHosts()[0].GetMatcher().GetMatcherTree().GetExactMatchMap().GetMap()
		if err := rc.ValidateAll(); err != nil || len(table) != 6 {
			t.Errorf("%d routes, %v", len(table), err)
		}
		route := &routev3.Route{}
		if err := table["2001:2::2"].GetAction().GetTypedConfig().UnmarshalTo(route); err != nil || route.GetRoute().GetCluster() != "outbound|80||b.x" {
			t.Errorf("the second host's route: %v, %v", route, err)
		}
	}
}

// TestRefused: what is shared and refused is refused for each host, and kept for those that were there before.
func TestRefused(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	a, b, web := entryOf("a.x", 80, "HTTP"), entryOf("b.x", 80, "HTTP"), entryOf("web.x", 8080, "HTTP")
	mustShare(t, s, source.snapshot(a, web))
	if err := s.answer(nil); err != nil {
		t.Fatal(err)
	}
	mustShare(t, s, source.snapshot(a, b, web))
	port, routes := xds.ID{Type: build.ListenerType, Name: "0.0.0.0_80"}, xds.ID{Type: build.RouteType, Name: "80"}
	cluster := xds.ID{Type: build.ClusterType, Name: "outbound|80||b.x"}
	own := func(i int) xds.ID { return xds.ID{Type: build.ListenerType, Name: fmt.Sprintf("240.240.0.%d_80", i)} }
	for _, tc := range []struct {
		name            string
		resources, kept []xds.ID
		want, wantKept  []xds.ID
	}{
		{"an earlier version is kept", []xds.ID{port}, []xds.ID{port}, []xds.ID{own(1), own(3)}, []xds.ID{own(1)}},
		{"nothing is kept", []xds.ID{port, routes}, []xds.ID{routes}, []xds.ID{own(1), own(3)}, nil},
		{"another's", []xds.ID{cluster}, nil, []xds.ID{cluster}, nil},
	} {
		err := s.answer(fmt.Errorf("wrapped: %w", &xds.RejectedError{Resources: tc.resources, Kept: tc.kept}))
		var got *xds.RejectedError
		if !errors.As(err, &got) || !slices.Equal(got.Resources, tc.want) || !slices.Equal(got.Kept, tc.wantKept) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if err := s.answer(net.ErrClosed); err != net.ErrClosed {
		t.Errorf("another error: %v", err)
	}
}

// TestHostCalledAddresses: the virtual host of a part is alone in its route configuration, so that no host can have its name.
func TestHostCalledAddresses(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	out := mustShare(t, s, source.snapshot(entryOf("addresses", 80, "HTTP"), entryOf("*.w.x", 80, "HTTP", "  endpoints: [{address: 1.2.3.4}]\n")))
	rc := &routev3.RouteConfiguration{}
	if len(out[build.RouteType]) != 1 {
		t.Fatalf("routes %q", namesOf(out[build.RouteType]))
	}
	if err := proto.Unmarshal(bodyOf(out[build.RouteType][0]), rc); err != nil {
		t.Fatal(err)
	}
	hosts := rc.GetVirtualHosts()
	if len(hosts) != 1 || len(hosts[0].GetMatcher().GetMatcherTree().GetExactMatchMap().GetMap()) != 2 {
		t.Errorf("virtual hosts %v", hosts)
	}
	if got := chains(t, out, "0.0.0.0_80"); len(got) < 2 {
		t.Errorf("%d filter chains: the wildcard has none of its own", len(got))
	}
}

// TestParts: the routes of many hosts are in parts, of which a host that comes, goes and comes back changes one, and no
// filter chain of another's.
func TestParts(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	var documents []string
	for i := range partSize + partSize/2 {
		documents = append(documents, entryOf(fmt.Sprintf("host-%04d.x", i), 80, "HTTP"))
	}
	last := mustShare(t, s, source.snapshot(documents...))
	state := func(what string, changes string, documents ...string) {
		t.Helper()
		now := mustShare(t, s, source.snapshot(documents...))
		before := map[string]*xds.Stored{}
		for _, r := range last[build.RouteType] {
			before[r.Name] = r
		}
		var changed []string
		for _, r := range now[build.RouteType] {
			if before[r.Name] != r {
				changed = append(changed, r.Name)
			}
		}
		if got := strings.Join(namesOf(now[build.RouteType]), " "); got != "80 80-1" || strings.Join(changed, " ") != changes {
			t.Errorf("%s: routes %q, of which %q change, want %q", what, got, changed, changes)
		}
		was, is := chains(t, last, "0.0.0.0_80"), chains(t, now, "0.0.0.0_80")
		for name, chain := range is {
			if len(is) != 3 || was[name] != chain {
				t.Errorf("%s: %d filter chains, and %s changes", what, len(is), name)
			}
		}
		last = now
	}
	state("nothing", "", documents...)
	first, more := slices.Delete(slices.Clone(documents), 3, 4), entryOf("more.x", 80, "HTTP")
	state("one of the first part goes", "80", first...)
	state("another comes in its place", "80", append(first, more)...)
	state("it is back, where it was", "80", append(documents, more)...)
	state("one more has no room there", "80-1", append(documents, more, entryOf("another.x", 80, "HTTP"))...)
}

// TestPartsRefused: of a part that Envoy refuses only the hosts of that part have no routes.
func TestPartsRefused(t *testing.T) {
	source, s := newBuilder(t), newSharer(t)
	documents := make([]string, partSize+1)
	for i := range documents {
		documents[i] = entryOf(fmt.Sprintf("host-%04d.x", i), 80, "HTTP")
	}
	mustShare(t, s, source.snapshot(documents...))
	routes := xds.ID{Type: build.RouteType, Name: "80-1"}
	var got *xds.RejectedError
	if err := s.answer(&xds.RejectedError{Resources: []xds.ID{routes}}); !errors.As(err, &got) {
		t.Fatal(err)
	}
	if want := (xds.ID{Type: build.ListenerType, Name: "240.240.2.1_80"}); !slices.Equal(got.Resources, []xds.ID{want}) || len(got.Kept) > 0 {
		t.Errorf("refused %v, want %v", got, want)
	}
}

// TestForget: the places of hosts that went take no more than so much.
func TestForget(t *testing.T) {
	p := newPort(80)
	for i := range 3 * remembered {
		m := &member{name: fmt.Sprint(i), resource: xds.NewStored("", nil), addrs: []netip.Addr{netip.AddrFrom4([4]byte{240, 240, byte(i >> 8), byte(i)})}, part: unplaced}
		if _, err := p.place([]*member{m}); err != nil {
			t.Fatal(err)
		}
		if len(p.gone) > remembered || len(p.parts) != 1 {
			t.Fatalf("after %d hosts, %d places and %d parts", i, len(p.gone), len(p.parts))
		}
	}
}

// FuzzScan: a listener comes from another release, too.
func FuzzScan(f *testing.F) {
	source := newBuilder(f)
	for _, r := range source.snapshot(entryOf("a.x", 80, "HTTP"), entryOf("b.x", 443, "TLS"))[build.ListenerType] {
		f.Add(bodyOf(r))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		m, err := scan(xds.NewStored("name", body))
		if m == nil || err != nil {
			if err != nil {
				t.Error(err)
			}
			return
		}
		l := &listenerv3.Listener{}
		if err := proto.Unmarshal(body, l); err != nil {
			return // text that is no UTF-8, which Envoy refuses as well
		}
		if len(l.GetFilterChains()) != 1 || l.GetBindToPort().GetValue() || uint32(m.port) != l.GetAddress().GetSocketAddress().GetPortValue() {
			t.Errorf("%v is a member of port %d", l, m.port)
		}
	})
}

// BenchmarkChange changes one of 10,000 HTTP hosts.
func BenchmarkChange(b *testing.B) {
	const n = 10_000
	source, s := newBuilder(b), newSharer(b)
	documents := make([]string, n)
	for i := range documents {
		documents[i] = entryOf(fmt.Sprintf("host-%d.x", i), 80, "HTTP")
	}
	states := []xds.Snapshot{source.snapshot(documents...), source.snapshot(documents[1:]...)}
	mustShare(b, s, states[0])
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		mustShare(b, s, states[(i+1)%2])
	}
}

// bodyOf is the body of a resource, which is in memory.
func bodyOf(r *xds.Stored) []byte {
	body, err := r.Body()
	if err != nil {
		panic(err)
	}
	return body
}
