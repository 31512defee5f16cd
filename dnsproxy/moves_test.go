package dnsproxy

import (
	"bytes"
	"context"
	"testing"

	"github.com/miekg/dns"
)

// An answer that came over a socket moves over too, whatever case the server's
// question is in.
func TestCacheMovesOverFromUpstream(t *testing.T) {
	answer := zone(0, goodA)
	up := newFakeUpstream(t, func(r []byte, tcp bool) []byte {
		return bytes.Replace(answer(r, tcp), []byte("\x01x\x07example"), []byte("\x01X\x07eXample"), 1)
	})
	now := newClock()
	first := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr)), Now: now.Now})
	first.Swap(NewTable(nil))
	first.ask(t, "udp", "x.example", dns.TypeA)
	second := newServer(t, Config{ResolvConf: writeConf(t), Now: now.Now})
	if n, err := second.ImportCache(first.ExportCache(1 << 20)); n != 1 || err != nil {
		t.Fatalf("%d entries, %v", n, err)
	}
	if e, err := second.Explain(context.Background(), "x.example", dns.TypeA); err != nil || e.Source != "cache" || e.Server != up.addr.String() {
		t.Errorf("%+v, %v", e, err)
	}
}
