package dnsproxy

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"
)

const (
	exampleA = "\x07example\x00\x00\x01\x00\x01" // the question
	anOPT    = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
)

// FuzzTable: what the table has of any query is answered at once, and whatever comes, a
// reply can be read and is about the name that was asked for.
func FuzzTable(f *testing.F) {
	f.Add(raw(flagRD, [4]uint16{1}, exampleA))
	f.Add(raw(flagRD, [4]uint16{1, 0, 0, 1}, exampleA+anOPT))
	f.Add(raw(0, [4]uint16{1, 0, 0, 2}, exampleA+anOPT+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add(raw(0, [4]uint16{1}, "\x06AliYun\x03cOm\x00\x00\x01\x00\x01"))
	f.Add(raw(0, [4]uint16{1}, "\x012\x011\x03240\x03240\x07in-addr\x04arpa\x00\x00\x0c\x00\x01"))
	table := NewTable(testHosts)
	h := newTables(Config{TTL: 30, Domain: testDomain}, heldHandler{})
	h.searched(testSearch)
	h.swap(table)
	f.Fuzz(func(t *testing.T, msg []byte) {
		q := new(query)
		v := q.parse(bytes.Clone(msg), 0)
		var reply []byte
		switch v {
		case dropIt:
			return
		case rejectIt:
			reply = appendReject(nil, q)
		case answerIt:
			a, ok := h.fast(q, nil, nil)
			compareAnswer(t, table, q, ok)
			if !ok {
				a.msg = appendReply(nil, q, 0, rcodeServFail)
			}
			reply = finish(q, a.msg)
		}
		var r dns.Msg
		if err := r.Unpack(reply); err != nil {
			t.Fatalf("reply %x: %v", reply, err)
		}
		if len(reply) > q.limit || !r.Response || r.Id != q.id {
			t.Fatalf("reply of %d bytes, limit %d: %v", len(reply), q.limit, r.MsgHdr)
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
