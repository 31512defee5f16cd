package dnsproxy

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

const (
	exampleA = "\x07example\x00\x00\x01\x00\x01" // the question
	anOPT    = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
)

// FuzzTable: what the table has of any query is answered at once, and whatever comes, a
// reply can be read and is about the name that was asked for.
func FuzzTable(f *testing.F) {
	f.Add(dnstest.Raw(wire.FlagRD, [4]uint16{1}, exampleA))
	f.Add(dnstest.Raw(wire.FlagRD, [4]uint16{1, 0, 0, 1}, exampleA+anOPT))
	f.Add(dnstest.Raw(0, [4]uint16{1, 0, 0, 2}, exampleA+anOPT+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add(dnstest.Raw(0, [4]uint16{1}, "\x06AliYun\x03cOm\x00\x00\x01\x00\x01"))
	f.Add(dnstest.Raw(0, [4]uint16{1}, "\x012\x011\x03240\x03240\x07in-addr\x04arpa\x00\x00\x0c\x00\x01"))
	all := table.New(testHosts)
	s := newServer(f, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(f)}})
	s.Swap(all)
	via := &chainOf(s).flights
	f.Fuzz(func(t *testing.T, msg []byte) {
		q := new(wire.Query)
		v := q.Parse(bytes.Clone(msg), 0)
		var reply []byte
		switch v {
		case wire.DropIt:
			return
		case wire.RejectIt:
			reply = wire.AppendReject(nil, q)
		case wire.AnswerIt:
			a, _, ok := s.tables.Fast(q, nil, via)
			compareAnswer(t, all, q, ok)
			if !ok {
				a.Msg = wire.AppendReply(nil, q, 0, wire.RcodeServFail)
			}
			reply = wire.Finish(q, a.Msg)
		}
		var r dns.Msg
		if err := r.Unpack(reply); err != nil {
			t.Fatalf("reply %x: %v", reply, err)
		}
		if len(reply) > q.Limit || !r.Response || r.Id != q.ID {
			t.Fatalf("reply of %d bytes, limit %d: %v", len(reply), q.Limit, r.MsgHdr)
		}
		owner := ""
		for i, rr := range r.Answer {
			if i == 0 {
				owner = r.Question[0].Name
			}
			if rr.Header().Name != owner {
				t.Fatalf("owner %q for %q, question %q", rr.Header().Name, owner, r.Question[0].Name)
			}
			if c, ok := rr.(*dns.CNAME); ok {
				owner = c.Target
			}
		}
	})
}
