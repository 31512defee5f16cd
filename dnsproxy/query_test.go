package dnsproxy

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// raw builds a message by hand: header fields and a body.
func raw(flags uint16, counts [4]uint16, body string) []byte {
	m := []byte{0x12, 0x34, byte(flags >> 8), byte(flags)}
	for _, n := range counts {
		m = append(m, byte(n>>8), byte(n))
	}
	return append(m, body...)
}

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

func TestEDNS(t *testing.T) {
	up := newFakeUpstream(t, zone(0, "x.example. 60 IN A 192.0.2.1"))
	s := start(t, Config{ResolvConf: writeConf(t, nameserver(up.addr))})
	s.Swap(NewTable(testHosts, 0))
	for _, name := range []string{"aliyun.com", "x.example", "x.example"} { // table, upstream, cache
		r := s.ask(t, "udp", name, dns.TypeA, edns(1400, true))
		opt := r.IsEdns0()
		if opt == nil || !opt.Do() || opt.UDPSize() != ownUDPSize || len(r.Answer) != 1 {
			t.Errorf("%s: %v", name, r)
		}
		if r := s.ask(t, "udp", name, dns.TypeA); r.IsEdns0() != nil {
			t.Errorf("%s: OPT for a client that sent none", name)
		}
	}
	s.ask(t, "udp", "y.example", dns.TypeA, edns(1400, true))
	if opt := up.request(t).IsEdns0(); opt == nil || !opt.Do() || opt.UDPSize() != ownUDPSize {
		t.Errorf("the upstream got %v", opt)
	}
	r := s.ask(t, "udp", "aliyun.com", dns.TypeA, edns(1400, false), func(m *dns.Msg) { m.IsEdns0().SetVersion(1) })
	if r.Rcode != dns.RcodeBadVers || r.IsEdns0().Version() != 0 {
		t.Errorf("version 1: %v", r)
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

// FuzzQuery compares the parser with miekg/dns: what that can read we can, and
// we see the same; and whatever comes, a reply can be read.
func FuzzQuery(f *testing.F) {
	f.Add(raw(flagRD, [4]uint16{1}, aQuestion))
	f.Add(raw(flagRD, [4]uint16{1, 0, 0, 1}, aQuestion+optRR))
	f.Add(raw(0, [4]uint16{1, 0, 0, 2}, aQuestion+optRR+"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add(raw(0, [4]uint16{1}, "\x06AliYun\x03cOm\x00\x00\x01\x00\x01"))
	f.Add(raw(0, [4]uint16{1}, "\x012\x011\x03240\x03240\x07in-addr\x04arpa\x00\x00\x0c\x00\x01"))
	table := NewTable(testHosts, 30)
	h := newTables(Config{TTL: 30, Domain: testDomain}, heldHandler{})
	h.searched(testSearch)
	h.swap(table)
	f.Fuzz(func(t *testing.T, msg []byte) {
		q := new(query)
		v := q.parse(bytes.Clone(msg), 0)
		var m dns.Msg
		if err := m.Unpack(msg); err == nil && plain(msg, &m) {
			compareQuery(t, q, v, &m)
		}
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

// plain says whether m, read from msg, is a query that need not be refused, but for
// refusedFor. miekg/dns forgives a message that ends before its counts are reached.
func plain(msg []byte, m *dns.Msg) bool {
	for s, have := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		if int(binary.BigEndian.Uint16(msg[6+2*s:])) != len(have) {
			return false
		}
	}
	opts := 0
	for _, rr := range append(append(m.Answer, m.Ns...), m.Extra...) {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	opt := m.IsEdns0()
	if opts > 1 || opts == 1 && (opt == nil || opt.Hdr.Name != "." || opt.Version() != 0) {
		return false
	}
	return !m.Response && m.Opcode == dns.OpcodeQuery && len(m.Question) == 1
}

// refusedFor is the code with which a question is refused whatever is known of its name.
func refusedFor(question dns.Question) int {
	switch t := question.Qtype; {
	case question.Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case t == dns.TypeOPT, t >= 128 && t < 255: // RFC 6895: of the message, and meta
		return dns.RcodeNotImplemented
	}
	return dns.RcodeSuccess
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

// compareAnswer checks the lookup against a slow one on the table's list.
func compareAnswer(t *testing.T, table *Table, q *query, hit bool) {
	t.Helper()
	if q.qtype != typeA && q.qtype != typeAAAA || q.qclass != classIN {
		return
	}
	name, _, err := dns.UnpackDomainName(q.wire(), 0)
	if err != nil || strings.Contains(name, `\`) {
		return
	}
	name = strings.TrimSuffix(name, ".")
	want := false
	for _, s := range []string{"", testDomain} {
		base := name
		if s != "" {
			var ok bool
			if base, ok = strings.CutSuffix(name, "."+s); !ok {
				continue
			}
		}
		for _, h := range table.Hosts() {
			suffix, wild := strings.CutPrefix(h.Name, "*")
			want = want || h.Name == base || wild && strings.HasSuffix(base, suffix)
		}
	}
	if hit != want {
		t.Fatalf("%q in the table: %v, want %v", name, hit, want)
	}
}
