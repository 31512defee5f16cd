package wire

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/tests/dnstest"
)

// FuzzQuery compares the parser with miekg/dns: what that can read we can, and
// we see the same; and whatever comes, a reply can be read.
func FuzzQuery(f *testing.F) {
	f.Add(dnstest.Raw(FlagRD, [4]uint16{1}, aQuestion))
	f.Add(dnstest.Raw(FlagRD, [4]uint16{1, 0, 0, 1}, aQuestion+optRR))
	f.Add(dnstest.Raw(0, [4]uint16{1, 0, 0, 2}, aQuestion+optRR+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add(dnstest.Raw(0, [4]uint16{1}, "\x06AliYun\x03cOm\x00\x00\x01\x00\x01"))
	f.Add(dnstest.Raw(0, [4]uint16{1}, "\x012\x011\x03240\x03240\x07in-addr\x04arpa\x00\x00\x0c\x00\x01"))
	f.Fuzz(func(t *testing.T, msg []byte) {
		q := new(Query)
		v := q.Parse(bytes.Clone(msg), 0)
		var m dns.Msg
		if err := m.Unpack(msg); err == nil && dnstest.Plain(msg, &m) {
			compareQuery(t, q, v, &m)
		}
		var reply []byte
		switch v {
		case DropIt:
			return
		case RejectIt:
			reply = AppendReject(nil, q)
		case AnswerIt:
			reply = Finish(q, AppendReply(nil, q, 0, RcodeServFail))
		}
		var r dns.Msg
		if err := r.Unpack(reply); err != nil {
			t.Fatalf("reply %x: %v", reply, err)
		}
		if len(reply) > q.Limit || !r.Response || r.Id != q.ID {
			t.Fatalf("reply of %d bytes, limit %d: %v", len(reply), q.Limit, r.MsgHdr)
		}
	})
}
