package sidecar

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/pkg/control"
	"understudy.mesh/tests/golden"
)

// TestDNSPagesStay compares the form of the DNS pages with that which commands of other releases, and people's
// scripts, read: the name of each field and the kind of its values, over all elements.
func TestDNSPagesStay(t *testing.T) {
	n, addr, forward := dnsPartWith(t, "nameserver [127.0.0.1]:1\nsearch default.svc.cluster.local\n") // nobody listens at port 1
	given, err := n.vips.Assign([]string{"vip.example", "freed.example"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.vips.Assign([]string{"vip.example"}); err != nil {
		t.Fatal(err)
	}
	plain := []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	n.dns.Swap(table.New([]table.Host{
		{Name: "vip.example", Addrs: given["vip.example"], VIP: true}, {Name: "*.wild.example", Addrs: plain}, {Name: "left.wild.example", Forwarded: true},
	}))
	askDNS(t, "udp", addr, "old.example.", dns.TypeA)
	forward(2 * time.Minute) // its TTL is over
	unusual := new(dns.Msg).SetQuestion("flags.example.", dns.TypeA).SetEdns0(4096, true)
	unusual.CheckingDisabled = true
	if _, err := dns.Exchange(unusual, addr); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the server at which nobody listens to be asked", func() bool {
		askDNS(t, "udp", addr, "gone.example.", dns.TypeA)
		forward(2 * time.Minute) // the failure is asked about anew
		return slices.ContainsFunc(n.dns.Upstreams(), func(u upstream.Stats) bool { return u.Error != "" })
	})
	askDNS(t, "udp", addr, "gone.example.", dns.TypeA)

	var text strings.Builder
	for _, p := range []struct{ method, path, query string }{
		{http.MethodGet, control.DNSLookupPath, "?name=vip.example"},
		{http.MethodGet, control.DNSLookupPath, "?name=a.wild.example"},
		{http.MethodGet, control.DNSLookupPath, "?name=vip.example.default.svc.cluster.local"},
		{http.MethodGet, control.DNSLookupPath, "?name=new.example"}, // of an upstream, then of the cache
		{http.MethodGet, control.DNSLookupPath, "?name=new.example"},
		{http.MethodGet, control.DNSTablePath, ""},
		{http.MethodGet, control.DNSCachePath, ""},
		{http.MethodGet, control.DNSVIPsPath, ""},
		{http.MethodGet, control.DNSUpstreamsPath, ""},
		{http.MethodGet, debugNames, ""},
		{http.MethodPost, control.DNSFlushPath, ""},
	} {
		w := httptest.NewRecorder()
		n.debugPages()[p.path].ServeHTTP(w, httptest.NewRequest(p.method, p.path+p.query, nil))
		var page any
		if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil {
			t.Fatalf("%s: %v: %s", p.path, err, w.Body)
		}
		fields := map[string]bool{}
		noteForm(fields, "", page)
		fmt.Fprintf(&text, "%s %s%s\n  %s\n", p.method, p.path, p.query, strings.Join(slices.Sorted(maps.Keys(fields)), "\n  "))
	}
	golden.Check(t, "testdata/dns_pages.golden", text.String())
}

// noteForm notes where in v there are values, and of which kind.
func noteForm(fields map[string]bool, at string, v any) {
	kind := "null"
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			noteForm(fields, at+"."+name, field)
		}
		return
	case []any:
		for _, element := range v {
			noteForm(fields, at+"[]", element)
		}
		return
	case string:
		kind = kindOfText(v)
	case float64:
		kind = "number"
	case bool:
		kind = "boolean"
	}
	fields[at+" "+kind] = true
}

func kindOfText(s string) string {
	if _, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return "time"
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return "address"
	}
	if _, err := netip.ParseAddrPort(s); err == nil {
		return "address:port"
	}
	return "text"
}
