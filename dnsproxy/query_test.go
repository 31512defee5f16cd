package dnsproxy

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const (
	aQuestion = "\x07example\x00\x00\x01\x00\x01"
	optRR     = "\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
)

func TestParseQuery(t *testing.T) {
	for name, tc := range map[string]struct {
		msg   []byte
		want  verdict
		rcode int
	}{
		"plain":                {raw(flagRD, [4]uint16{1}, aQuestion), answerIt, 0},
		"edns":                 {raw(flagRD, [4]uint16{1, 0, 0, 1}, aQuestion+optRR), answerIt, 0},
		"unknown option":       {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+optRR[:9]+"\x00\x06\xff\xaa\x00\x02ab"), answerIt, 0},
		"root":                 {raw(0, [4]uint16{1}, "\x00\x00\x02\x00\x01"), answerIt, 0},
		"longest name":         {raw(0, [4]uint16{1}, strings.Repeat("\x31"+strings.Repeat("a", 49), 5)+"\x03abc\x00\x00\x01\x00\x01"), answerIt, 0},
		"empty":                {nil, dropIt, 0},
		"short header":         {[]byte("12345678901"), dropIt, 0},
		"a reply":              {raw(flagQR, [4]uint16{1}, aQuestion), dropIt, 0},
		"header only":          {raw(0, [4]uint16{1}, ""), rejectIt, rcodeFormErr},
		"no question":          {raw(0, [4]uint16{0}, ""), rejectIt, rcodeFormErr},
		"two questions":        {raw(0, [4]uint16{2}, aQuestion+aQuestion), rejectIt, rcodeFormErr},
		"update":               {raw(5<<11, [4]uint16{1}, aQuestion), rejectIt, rcodeNotImp},
		"compressed name":      {raw(0, [4]uint16{1}, "\xc0\x0c\x00\x01\x00\x01"), rejectIt, rcodeFormErr},
		"reserved label":       {raw(0, [4]uint16{1}, "\x40example\x00\x00\x01\x00\x01"), rejectIt, rcodeFormErr},
		"cut name":             {raw(0, [4]uint16{1}, "\x07exam"), rejectIt, rcodeFormErr},
		"cut type":             {raw(0, [4]uint16{1}, aQuestion[:10]), rejectIt, rcodeFormErr},
		"name too long":        {raw(0, [4]uint16{1}, strings.Repeat("\x31"+strings.Repeat("a", 49), 5)+"\x04abcd\x00\x00\x01\x00\x01"), rejectIt, rcodeFormErr},
		"missing record":       {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion), rejectIt, rcodeFormErr},
		"two OPT":              {raw(0, [4]uint16{1, 0, 0, 2}, aQuestion+optRR+optRR), rejectIt, rcodeFormErr},
		"OPT with a name":      {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x01a"+optRR), rejectIt, rcodeFormErr},
		"OPT in the answer":    {raw(0, [4]uint16{1, 1, 0, 0}, aQuestion+optRR), rejectIt, rcodeFormErr},
		"OPT longer than sent": {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+optRR[:10]+"\x09"), rejectIt, rcodeFormErr},
		"EDNS version 1":       {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"), rejectIt, rcodeBadVers},
		"transfer":             {raw(0, [4]uint16{1}, "\x07example\x00\x00\xfc\x00\x01"), rejectIt, rcodeNotImp},
		"type ANY":             {raw(0, [4]uint16{1}, "\x07example\x00\x00\xff\x00\x01"), answerIt, 0},
		"type OPT":             {raw(0, [4]uint16{1}, "\x07example\x00\x00\x29\x00\x01"), rejectIt, rcodeNotImp},
		"type TSIG":            {raw(0, [4]uint16{1}, "\x07example\x00\x00\xfa\x00\x01"), rejectIt, rcodeNotImp},
		"no type of its own":   {raw(0, [4]uint16{1}, "\x07example\x00\x01\x00\x00\x01"), answerIt, 0},
		"class ANY":            {raw(0, [4]uint16{1}, "\x07example\x00\x00\x01\x00\xff"), rejectIt, rcodeRefused},
		"class CHAOS":          {raw(0, [4]uint16{1, 0, 0, 1}, "\x07version\x04bind\x00\x00\x10\x00\x03"+optRR), rejectIt, rcodeRefused},
		"class 0":              {raw(0, [4]uint16{1}, "\x07example\x00\x00\x01\x00\x00"), rejectIt, rcodeRefused},
	} {
		t.Run(name, func(t *testing.T) {
			q := new(query)
			got := q.parse(tc.msg, 0)
			if got != tc.want || got == rejectIt && q.rcode != tc.rcode {
				t.Fatalf("got verdict %d rcode %d, want %d and %d", got, q.rcode, tc.want, tc.rcode)
			}
			if got != rejectIt {
				return
			}
			var reply dns.Msg
			if err := reply.Unpack(appendReject(nil, q)); err != nil {
				t.Fatalf("the refusal cannot be read: %v", err)
			}
			if reply.Id != 0x1234 || !reply.Response || reply.Rcode != tc.rcode {
				t.Errorf("refusal: %v", reply.MsgHdr)
			}
		})
	}
}

// A refusal has an OPT record where the query had one that can be found.
func TestRefusalWithOPT(t *testing.T) {
	for name, tc := range map[string]struct {
		msg  []byte
		want bool
	}{
		"update":               {raw(5<<11, [4]uint16{1, 0, 0, 1}, aQuestion+optRR), true},
		"update without":       {raw(5<<11, [4]uint16{1}, aQuestion), false},
		"no question":          {raw(0, [4]uint16{0, 0, 0, 1}, optRR), true},
		"two questions":        {raw(0, [4]uint16{2, 0, 0, 1}, aQuestion+aQuestion+optRR), true},
		"many questions":       {raw(0, [4]uint16{65535, 0, 0, 1}, aQuestion+optRR), false},
		"OPT behind a record":  {raw(5<<11, [4]uint16{1, 1, 0, 1}, aQuestion+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"+optRR), true},
		"OPT in the authority": {raw(5<<11, [4]uint16{1, 0, 1, 0}, aQuestion+optRR), false},
		"EDNS version 1":       {raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"), true},
	} {
		t.Run(name, func(t *testing.T) {
			q := new(query)
			if got := q.parse(tc.msg, 0); got != rejectIt {
				t.Fatalf("verdict %d", got)
			}
			var reply dns.Msg
			if err := reply.Unpack(appendReject(nil, q)); err != nil {
				t.Fatal(err)
			}
			if got := reply.IsEdns0() != nil; got != tc.want {
				t.Errorf("OPT %t: %v", got, reply)
			}
		})
	}
}

func compareQuery(t *testing.T, q *query, v verdict, m *dns.Msg) {
	t.Helper()
	if code := refusedFor(m.Question[0]); v == rejectIt && code != dns.RcodeSuccess && q.rcode == code {
		return
	}
	if v != answerIt {
		// Names only: miekg reads questions with compressed names, which
		// no client sends and RFC 1035 gives no meaning to.
		if len(q.question()) == 0 {
			return
		}
		t.Fatalf("verdict %d rcode %d for a query that miekg/dns reads: %v", v, q.rcode, m)
	}
	name := make([]byte, maxWireName+1)
	n, err := dns.PackDomainName(strings.ToLower(m.Question[0].Name), name, 0, nil, false)
	if err != nil || !bytes.Equal(bytes.ToLower(q.wire()), bytes.ToLower(name[:n])) {
		t.Fatalf("name %q, miekg/dns reads %q (%v)", q.wire(), m.Question[0].Name, err)
	}
	opt := m.IsEdns0()
	if q.qtype != m.Question[0].Qtype || q.qclass != m.Question[0].Qclass || q.id != m.Id || q.edns != (opt != nil) {
		t.Fatalf("got %+v, miekg/dns reads %v", q, m)
	}
	if opt != nil && (q.do != opt.Do() || q.limit != min(max(int(opt.UDPSize()), 512), maxUDPSize)) {
		t.Fatalf("got %+v, miekg/dns reads %v", q, opt)
	}
}
