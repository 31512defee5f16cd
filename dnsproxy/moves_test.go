package dnsproxy

import (
	"bytes"
	"context"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// An answer that came over a socket moves over too, whatever case the server's
// question is in.
func TestCacheMovesOverFromUpstream(t *testing.T) {
	answer := dnstest.Zone(0, dnstest.GoodA)
	up := dnstest.NewUpstream(t, func(r []byte, tcp bool) []byte {
		return bytes.Replace(answer(r, tcp), []byte("\x01x\x07example"), []byte("\x01X\x07eXample"), 1)
	})
	now := dnstest.NewClock()
	first := start(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, Now: now.Now})
	first.Swap(table.New(nil))
	first.ask(t, "udp", "x.example", dns.TypeA)
	second := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t)}, Now: now.Now})
	if n, err := second.Cache.Import(first.Cache.Export(1 << 20)); n != 1 || err != nil {
		t.Fatalf("%d entries, %v", n, err)
	}
	if e, err := second.Explain(context.Background(), "x.example", dns.TypeA); err != nil || e.Source != "cache" || e.Server != up.Addr.String() {
		t.Errorf("%+v, %v", e, err)
	}
}
