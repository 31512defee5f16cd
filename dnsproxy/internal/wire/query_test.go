package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/tests/dnstest"
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
		"plain":                {dnstest.Raw(FlagRD, [4]uint16{1}, aQuestion), AnswerIt, 0},
		"edns":                 {dnstest.Raw(FlagRD, [4]uint16{1, 0, 0, 1}, aQuestion+optRR), AnswerIt, 0},
		"unknown option":       {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+optRR[:9]+"\x00\x06\xff\xaa\x00\x02ab"), AnswerIt, 0},
		"root":                 {dnstest.Raw(0, [4]uint16{1}, "\x00\x00\x02\x00\x01"), AnswerIt, 0},
		"longest name":         {dnstest.Raw(0, [4]uint16{1}, strings.Repeat("\x31"+strings.Repeat("a", 49), 5)+"\x03abc\x00\x00\x01\x00\x01"), AnswerIt, 0},
		"empty":                {nil, DropIt, 0},
		"short header":         {[]byte("12345678901"), DropIt, 0},
		"a reply":              {dnstest.Raw(FlagQR, [4]uint16{1}, aQuestion), DropIt, 0},
		"header only":          {dnstest.Raw(0, [4]uint16{1}, ""), RejectIt, RcodeFormErr},
		"no question":          {dnstest.Raw(0, [4]uint16{0}, ""), RejectIt, RcodeFormErr},
		"two questions":        {dnstest.Raw(0, [4]uint16{2}, aQuestion+aQuestion), RejectIt, RcodeFormErr},
		"update":               {dnstest.Raw(5<<11, [4]uint16{1}, aQuestion), RejectIt, RcodeNotImp},
		"compressed name":      {dnstest.Raw(0, [4]uint16{1}, "\xc0\x0c\x00\x01\x00\x01"), RejectIt, RcodeFormErr},
		"reserved label":       {dnstest.Raw(0, [4]uint16{1}, "\x40example\x00\x00\x01\x00\x01"), RejectIt, RcodeFormErr},
		"cut name":             {dnstest.Raw(0, [4]uint16{1}, "\x07exam"), RejectIt, RcodeFormErr},
		"cut type":             {dnstest.Raw(0, [4]uint16{1}, aQuestion[:10]), RejectIt, RcodeFormErr},
		"name too long":        {dnstest.Raw(0, [4]uint16{1}, strings.Repeat("\x31"+strings.Repeat("a", 49), 5)+"\x04abcd\x00\x00\x01\x00\x01"), RejectIt, RcodeFormErr},
		"missing record":       {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion), RejectIt, RcodeFormErr},
		"two OPT":              {dnstest.Raw(0, [4]uint16{1, 0, 0, 2}, aQuestion+optRR+optRR), RejectIt, RcodeFormErr},
		"OPT with a name":      {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x01a"+optRR), RejectIt, RcodeFormErr},
		"OPT in the answer":    {dnstest.Raw(0, [4]uint16{1, 1, 0, 0}, aQuestion+optRR), RejectIt, RcodeFormErr},
		"OPT longer than sent": {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+optRR[:10]+"\x09"), RejectIt, RcodeFormErr},
		"EDNS version 1":       {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"), RejectIt, rcodeBadVers},
		"transfer":             {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\xfc\x00\x01"), RejectIt, RcodeNotImp},
		"type ANY":             {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\xff\x00\x01"), AnswerIt, 0},
		"type OPT":             {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\x29\x00\x01"), RejectIt, RcodeNotImp},
		"type TSIG":            {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\xfa\x00\x01"), RejectIt, RcodeNotImp},
		"no type of its own":   {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x01\x00\x00\x01"), AnswerIt, 0},
		"class ANY":            {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\x01\x00\xff"), RejectIt, rcodeRefused},
		"class CHAOS":          {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, "\x07version\x04bind\x00\x00\x10\x00\x03"+optRR), RejectIt, rcodeRefused},
		"class 0":              {dnstest.Raw(0, [4]uint16{1}, "\x07example\x00\x00\x01\x00\x00"), RejectIt, rcodeRefused},
	} {
		t.Run(name, func(t *testing.T) {
			q := new(Query)
			got := q.Parse(tc.msg, 0)
			if got != tc.want || got == RejectIt && q.Rcode != tc.rcode {
				t.Fatalf("got verdict %d rcode %d, want %d and %d", got, q.Rcode, tc.want, tc.rcode)
			}
			if got != RejectIt {
				return
			}
			var reply dns.Msg
			if err := reply.Unpack(AppendReject(nil, q)); err != nil {
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
		"update":               {dnstest.Raw(5<<11, [4]uint16{1, 0, 0, 1}, aQuestion+optRR), true},
		"update without":       {dnstest.Raw(5<<11, [4]uint16{1}, aQuestion), false},
		"no question":          {dnstest.Raw(0, [4]uint16{0, 0, 0, 1}, optRR), true},
		"two questions":        {dnstest.Raw(0, [4]uint16{2, 0, 0, 1}, aQuestion+aQuestion+optRR), true},
		"many questions":       {dnstest.Raw(0, [4]uint16{65535, 0, 0, 1}, aQuestion+optRR), false},
		"OPT behind a record":  {dnstest.Raw(5<<11, [4]uint16{1, 1, 0, 1}, aQuestion+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"+optRR), true},
		"OPT in the authority": {dnstest.Raw(5<<11, [4]uint16{1, 0, 1, 0}, aQuestion+optRR), false},
		"EDNS version 1":       {dnstest.Raw(0, [4]uint16{1, 0, 0, 1}, aQuestion+"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"), true},
	} {
		t.Run(name, func(t *testing.T) {
			q := new(Query)
			if got := q.Parse(tc.msg, 0); got != RejectIt {
				t.Fatalf("verdict %d", got)
			}
			var reply dns.Msg
			if err := reply.Unpack(AppendReject(nil, q)); err != nil {
				t.Fatal(err)
			}
			if got := reply.IsEdns0() != nil; got != tc.want {
				t.Errorf("OPT %t: %v", got, reply)
			}
		})
	}
}

func compareQuery(t *testing.T, q *Query, v verdict, m *dns.Msg) {
	t.Helper()
	if code := dnstest.RefusedFor(m.Question[0]); v == RejectIt && code != dns.RcodeSuccess && q.Rcode == code {
		return
	}
	if v != AnswerIt {
		// Names only: miekg reads questions with compressed names, which
		// no client sends and RFC 1035 gives no meaning to.
		if len(q.Question()) == 0 {
			return
		}
		t.Fatalf("verdict %d rcode %d for a query that miekg/dns reads: %v", v, q.Rcode, m)
	}
	name := make([]byte, MaxWireName+1)
	n, err := dns.PackDomainName(strings.ToLower(m.Question[0].Name), name, 0, nil, false)
	if err != nil || !bytes.Equal(bytes.ToLower(q.Name()), bytes.ToLower(name[:n])) {
		t.Fatalf("name %q, miekg/dns reads %q (%v)", q.Name(), m.Question[0].Name, err)
	}
	opt := m.IsEdns0()
	if q.Type != m.Question[0].Qtype || q.Class != m.Question[0].Qclass || q.ID != m.Id || q.EDNS != (opt != nil) {
		t.Fatalf("got %+v, miekg/dns reads %v", q, m)
	}
	if opt != nil && (q.DO != opt.Do() || q.Limit != min(max(int(opt.UDPSize()), 512), maxUDPSize)) {
		t.Fatalf("got %+v, miekg/dns reads %v", q, opt)
	}
}
