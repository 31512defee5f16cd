package sidecar

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/status"
)

// dnsPart is the names of a pod with DNS capture: the proxy listens at addr and forwards to
// a server that knows every name but those of gone.example.
func dnsPart(t *testing.T) (n *names, addr string) {
	t.Helper()
	n, addr, _ = dnsPartWith(t, "")
	return n, addr
}

// dnsPartWith has more in its resolv.conf, and a clock that forward sets forward.
func dnsPartWith(t *testing.T, more string) (n *names, addr string, forward func(time.Duration)) {
	t.Helper()
	listen := func() (*net.UDPConn, *net.TCPListener) {
		udp, tcp, err := dnsproxy.Listen([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")})
		if err != nil {
			t.Fatal(err)
		}
		return udp[0], tcp[0]
	}
	udp, tcp := listen()
	up := &dns.Server{PacketConn: udp, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if q := r.Question[0]; strings.HasSuffix(q.Name, "gone.example.") {
			m.Rcode = dns.RcodeServerFailure
		} else if q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.IP{192, 0, 2, 1}}}
		}
		_ = w.WriteMsg(m)
	})}
	go up.ActivateAndServe()
	t.Cleanup(func() { up.Shutdown(); tcp.Close() })
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("nameserver [127.0.0.1]:%d\n%s", udp.LocalAddr().(*net.UDPAddr).Port, more)), 0o600); err != nil {
		t.Fatal(err)
	}
	vips, err := vip.Open(vip.Config{V4: netip.MustParsePrefix("240.240.0.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	// Hardly any time goes by by itself: what is cached stays.
	began, passed := time.Now(), new(atomic.Int64)
	now := func() time.Time { return began.Add(time.Duration(passed.Add(int64(time.Microsecond)))) }
	server, err := dnsproxy.New(dnsproxy.Config{Upstream: upstream.Config{ResolvConf: conf}, Domain: "default.svc.cluster.local", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	udp, tcp = listen()
	serving := server.Start([]*net.UDPConn{udp}, []*net.TCPListener{tcp})
	t.Cleanup(func() { serving.Close(t.Context()) })
	return &names{dns: server, captured: true, vips: vips}, tcp.Addr().String(), func(d time.Duration) { passed.Add(int64(d)) }
}

func askDNS(t *testing.T, network, addr, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m, _, err := (&dns.Client{Net: network, Timeout: 2 * time.Minute}).Exchange(new(dns.Msg).SetQuestion(name, qtype), addr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// page reads a debug page into a value.
func page(t *testing.T, n *names, url string, into any) (code int, body string) {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, url, nil)
	w := httptest.NewRecorder()
	n.debugPages()[r.URL.Path].ServeHTTP(w, r)
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatalf("%s: %v\n%s", url, err, w.Body)
		}
	}
	return w.Code, w.Body.String()
}

func TestDNSPages(t *testing.T) {
	n, addr := dnsPart(t)
	var hosts []table.Host
	if code, body := page(t, n, control.DNSTablePath, &hosts); code != http.StatusOK || hosts == nil || len(hosts) != 0 {
		t.Errorf("before the first table: %d %s", code, body)
	}
	if code, body := page(t, n, debugNames, new(map[string]any)); code != http.StatusOK {
		t.Errorf("Istio's page before the first table: %d %s", code, body)
	}
	given, err := n.vips.Assign([]string{"a.example", "b.example"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.vips.Assign([]string{"a.example"}); err != nil {
		t.Fatal(err)
	}
	n.dns.Swap(table.New([]table.Host{
		{Name: "a.example", Addrs: given["a.example"], VIP: true}, {Name: "*.a.example", Addrs: given["a.example"]}, {Name: "ba.example", Addrs: given["b.example"]},
	}))
	askDNS(t, "udp", addr, "Www.Plain.example.", dns.TypeA)
	askDNS(t, "udp", addr, "gone.example.", dns.TypeA)

	names := func(list []table.Host) (names []string) {
		for _, h := range list {
			names = append(names, h.Name)
		}
		return names
	}
	for filter, want := range map[string][]string{
		"": {"*.a.example", "a.example", "ba.example"}, "A.example.": {"*.a.example", "a.example"}, "ba": {"ba.example"}, "xample": nil,
	} {
		hosts = nil
		page(t, n, control.DNSTablePath+"?name="+filter, &hosts)
		if diff := cmp.Diff(want, names(hosts)); diff != "" {
			t.Errorf("table of %q: %s", filter, diff)
		}
	}
	var cached []cache.Entry
	page(t, n, control.DNSCachePath, &cached)
	if len(cached) != 2 || cached[0].Name != "www.plain.example." || cached[0].Rcode != "NOERROR" || !cached[1].Failure || cached[1].Name != "gone.example." {
		t.Errorf("cache: %+v", cached)
	}
	if page(t, n, control.DNSCachePath+"?name=plain.example", &cached); len(cached) != 1 || cached[0].Name != "www.plain.example." {
		t.Errorf("cache of plain.example: %+v", cached)
	}
	var vips struct {
		Pool vip.Stats `json:"pool"`
		VIPs []vip.VIP `json:"vips"`
	}
	page(t, n, control.DNSVIPsPath, &vips)
	if vips.Pool.Assigned != 1 || vips.Pool.Quarantined != 1 || vips.Pool.Capacity != 254 || len(vips.VIPs) != 2 || vips.VIPs[0].Host != "a.example" || vips.VIPs[1].Usable.IsZero() {
		t.Errorf("VIPs: %+v", vips)
	}
	if page(t, n, control.DNSVIPsPath+"?name=b", &vips); vips.Pool.Assigned != 1 || len(vips.VIPs) != 1 || vips.VIPs[0].Host != "b.example" {
		t.Errorf("VIPs of b: %+v", vips)
	}
	var upstreams []upstream.Stats
	if page(t, n, control.DNSUpstreamsPath, &upstreams); len(upstreams) != 1 || upstreams[0].Requests < 2 || !upstreams[0].InUse {
		t.Errorf("upstreams: %+v", upstreams)
	}
	var x dnsproxy.Explanation
	if page(t, n, control.DNSLookupPath+"?name=a.example", &x); x.Source != "vip" {
		t.Errorf("lookup: %+v", x)
	}
	if code, body := page(t, n, control.DNSLookupPath+"?name=a.example&type=x", nil); code != http.StatusBadRequest || !strings.Contains(body, `"X"`) {
		t.Errorf("lookup of a type that there is not: %d %s", code, body)
	}
}

// Only a POST takes answers out of the cache, and only those that were named.
func TestDNSFlush(t *testing.T) {
	n, addr := dnsPart(t)
	askDNS(t, "udp", addr, "www.plain.example.", dns.TypeA)
	if code, body := page(t, n, control.DNSFlushPath, nil); code != http.StatusMethodNotAllowed || !strings.Contains(body, "use POST") {
		t.Errorf("GET: %d %s", code, body)
	}
	for _, tc := range []struct {
		query string
		want  int
	}{{"?name=other.example", 0}, {"?name=Plain.example", 1}, {"", 0}} {
		w := httptest.NewRecorder()
		n.debugPages()[control.DNSFlushPath].ServeHTTP(w, httptest.NewRequest(http.MethodPost, control.DNSFlushPath+tc.query, nil))
		var got struct{ Flushed int }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Flushed != tc.want {
			t.Errorf("%q: %s, %v, want %d", tc.query, w.Body, err, tc.want)
		}
	}
}

// TestDNSPagesWithoutDNS says what would be needed.
func TestDNSPagesWithoutDNS(t *testing.T) {
	n := &names{}
	for _, path := range []string{control.DNSLookupPath + "?name=x", control.DNSTablePath, control.DNSCachePath, control.DNSFlushPath, control.DNSVIPsPath, control.DNSUpstreamsPath} {
		if code, body := page(t, n, path, nil); code != http.StatusNotFound || strings.TrimSpace(body) != noDNS {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	if samples := n.dnsSamples(); len(samples) != 0 {
		t.Errorf("metrics without DNS: %v", samples)
	}
}

// A page of 100,000 names is whole.
func TestDNSPageOfManyNames(t *testing.T) {
	n, _ := dnsPart(t)
	hosts := make([]table.Host, 100_000)
	for i := range hosts {
		hosts[i] = table.Host{Name: fmt.Sprintf("h%d.example", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}}
	}
	n.dns.Swap(table.New(hosts))
	var got []table.Host
	if page(t, n, control.DNSTablePath, &got); len(got) != len(hosts) {
		t.Errorf("%d names, want %d", len(got), len(hosts))
	}
}

// scrape returns the value of every series of the DNS metrics, by name and labels.
func scrape(t *testing.T, n *names) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	for _, read := range []func() []status.Sample{n.dnsSamples, n.vipSamples} {
		if err := status.Register(registry, read); err != nil {
			t.Fatal(err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += fmt.Sprintf("{%s=%s}", l.GetName(), l.GetValue())
			}
			series[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	return series
}

// TestDNSMetrics counts what was asked; Istio's names are among them.
func TestDNSMetrics(t *testing.T) {
	n, addr := dnsPart(t)
	given, err := n.vips.Assign([]string{"a.example"})
	if err != nil {
		t.Fatal(err)
	}
	n.dns.Swap(table.New([]table.Host{{Name: "a.example", Addrs: given["a.example"], VIP: true}}))
	before := scrape(t, n)
	askDNS(t, "udp", addr, "a.example.", dns.TypeA)
	askDNS(t, "udp", addr, "x.example.", dns.TypeA)
	askDNS(t, "tcp", addr, "x.example.", dns.TypeA)
	askDNS(t, "udp", addr, "gone.example.", dns.TypeTXT)
	askDNS(t, "udp", addr, "gone.example.", dns.TypeTXT)
	for i := range uint16(40) { // types that have no name of their own
		askDNS(t, "udp", addr, "a.example.", 1000+i)
	}
	waitFor(t, "the end of what was answered", func() bool { return n.dns.Stats().Inflight == 0 })
	after := scrape(t, n)
	server := "{upstream=" + n.dns.Upstreams()[0].Server.String() + "}"
	for name, want := range map[string]float64{
		"dns_requests_total": 45, "dns_table_names": 1, "dns_refused_total": 0, "dns_dropped_total": 0, "dns_inflight": 0,
		"dns_transport_requests_total{transport=udp}": 44, "dns_transport_requests_total{transport=tcp}": 1, "dns_tcp_cut_total": 0,
		"dns_answers_total{source=table}": 1, "dns_answers_total{source=cache}": 1, "dns_answers_total{source=upstream}": 42,
		"dns_answers_total{source=failure}": 1, "dns_answers_total{source=stale}": 0, "dns_answers_total{source=reject}": 0,
		"dns_questions_total{type=A}": 3, "dns_questions_total{type=TXT}": 2, "dns_questions_total{type=other}": 40, "dns_questions_total{type=AAAA}": 0,
		"dns_responses_total{rcode=NOERROR}": 43, "dns_responses_total{rcode=SERVFAIL}": 2, "dns_responses_total{rcode=NXDOMAIN}": 0, "dns_responses_total{rcode=other}": 0, "dns_responses_total{rcode=BADVERS}": 0,
		"dns_cache_hits_total": 1, "dns_cache_misses_total": 43, "dns_cache_failures_total": 1, "dns_cache_entries": 1, "dns_cache_prefetches_total": 0,
		"dns_upstream_failures_total" + server: 0, "dns_upstream_healthy" + server: 1,
		"dns_vips_assigned": 1, "dns_vips_capacity": 254, "dns_vips_quarantined": 0, "dns_vips_pending": 0,
	} {
		if got, ok := after["istio_agent_"+name]; !ok || got != want {
			t.Errorf("%s: %v (there: %v), want %v", name, got, ok, want)
		}
	}
	for name, least := range map[string]float64{ // on a busy machine a server is asked a second time
		"dns_cache_bytes": 1, "dns_upstream_requests_total" + server: 42, "dns_upstream_request_duration_seconds" + server: 42,
		"dns_upstream_hedges_total" + server: 0, "dns_upstream_overtaken_total" + server: 0, "dns_upstream_rtt_seconds" + server: 0,
	} {
		if got, ok := after["istio_agent_"+name]; !ok || got < least {
			t.Errorf("%s: %v (there: %v), want %v or more", name, got, ok, least)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			t.Errorf("%s was not there before the first query", name)
		}
	}
}
