package dnsproxy

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

// reference answers what the fast path answers, by the same rules, slowly and
// without a line in common: lists, text and miekg/dns. Its answers are whole;
// what a client has no room for is the caller's to check.
type reference struct {
	hosts  []table.Host
	domain string // the pod's own
	ttl    uint32
	cached map[dns.Question]*dns.Msg // lower case
}

// answer returns the reply to a query that is plain; nil when it takes an upstream.
func (r *reference) answer(m *dns.Msg) *dns.Msg {
	reply := new(dns.Msg).SetReply(m)
	reply.RecursionAvailable = true
	reply.CheckingDisabled = m.CheckingDisabled
	do := false
	if opt := m.IsEdns0(); opt != nil {
		do = opt.Do()
		reply.SetEdns0(1232, do)
	}
	asked := m.Question[0]
	if reply.Rcode = dnstest.RefusedFor(asked); reply.Rcode != dns.RcodeSuccess {
		return reply
	}
	if base, ok := r.local(strings.ToLower(asked.Name)); ok {
		r.addLocal(reply, base)
		return reply
	}
	key := dns.Question{Name: strings.ToLower(asked.Name), Qtype: asked.Qtype, Qclass: asked.Qclass}
	addrs, base := r.find(key.Name)
	vipHost := r.vipHost(key.Name)
	known := addrs != nil || vipHost != ""
	cached := r.kept(key)
	switch {
	case base != "" && (asked.Qtype == dns.TypeCNAME || asked.Qtype == dns.TypeANY):
		reply.Authoritative = true
		r.addAlias(reply, base)
	case addrs != nil && (asked.Qtype == dns.TypeA || asked.Qtype == dns.TypeAAAA || asked.Qtype == dns.TypeANY):
		reply.Authoritative = true
		r.addAddresses(reply, addrs)
		if base != "" {
			r.addAlias(reply, base)
		}
	case addrs == nil && vipHost != "" && (asked.Qtype == dns.TypePTR || asked.Qtype == dns.TypeANY):
		reply.Authoritative = true
		reply.Answer = []dns.RR{&dns.PTR{Hdr: r.header(reply, dns.TypePTR), Ptr: vipHost + "."}}
	case cached != nil && known && cached.Rcode == dns.RcodeNameError:
		reply.Authoritative = true
		r.addSOA(reply)
	case cached != nil:
		kept := cached.Copy()
		reply.Rcode, reply.Answer, reply.Ns = kept.Rcode, kept.Answer, kept.Ns
		reply.AuthenticatedData = kept.AuthenticatedData && (do || m.AuthenticatedData)
	default:
		return nil
	}
	return reply
}

// kept returns what the cache has for a question. That there is no such name, asked
// for its A, holds for its AAAA, too; not when it is an alias of what does not exist.
func (r *reference) kept(key dns.Question) *dns.Msg {
	if m := r.cached[key]; m != nil || key.Qtype != dns.TypeAAAA {
		return m
	}
	key.Qtype = dns.TypeA
	if m := r.cached[key]; m != nil && m.Rcode == dns.RcodeNameError && len(m.Answer) == 0 {
		return m
	}
	return nil
}

func (r *reference) header(reply *dns.Msg, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: reply.Question[0].Name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: r.ttl}
}

func (r *reference) addAddresses(reply *dns.Msg, addrs []netip.Addr) {
	qtype := reply.Question[0].Qtype
	if qtype == dns.TypeANY {
		qtype = dns.TypeAAAA
		if slices.ContainsFunc(addrs, netip.Addr.Is4) {
			qtype = dns.TypeA
		}
	}
	for _, a := range addrs {
		switch {
		case a.Is4() && qtype == dns.TypeA:
			reply.Answer = append(reply.Answer, &dns.A{Hdr: r.header(reply, qtype), A: net.IP(a.AsSlice())})
		case a.Is6() && qtype == dns.TypeAAAA:
			reply.Answer = append(reply.Answer, &dns.AAAA{Hdr: r.header(reply, qtype), AAAA: net.IP(a.AsSlice())})
		}
	}
	if len(reply.Answer) == 0 {
		r.addSOA(reply)
	}
}

// addAlias makes what reply says of the question's name what it says of base, and the
// first an alias of the second.
func (r *reference) addAlias(reply *dns.Msg, base string) {
	for _, rr := range slices.Concat(reply.Answer, reply.Ns) {
		rr.Header().Name = base
		if soa, ok := rr.(*dns.SOA); ok {
			soa.Ns = base
		}
	}
	reply.Answer = append([]dns.RR{&dns.CNAME{Hdr: r.header(reply, dns.TypeCNAME), Target: base}}, reply.Answer...)
}

func (r *reference) addSOA(reply *dns.Msg) {
	reply.Ns = []dns.RR{&dns.SOA{Hdr: r.header(reply, dns.TypeSOA), Ns: reply.Question[0].Name, Mbox: "nobody.invalid.",
		Serial: 1, Refresh: 3600, Retry: 1200, Expire: 604800, Minttl: r.ttl}}
}

// local says whether a name is this host's, and what it is without a search domain, ""
// if it has none.
func (r *reference) local(name string) (base string, ok bool) {
	labels := dns.SplitDomainName(name)
	for _, domain := range append([]string{""}, dnstest.Search...) {
		of := dns.SplitDomainName("localhost." + domain)
		if len(labels) < len(of) || !slices.Equal(of, labels[len(labels)-len(of):]) {
			continue
		}
		if domain != "" {
			base = strings.TrimSuffix(name, domain+".")
		}
		return base, true
	}
	return "", false
}

// addLocal makes reply the one about a name of this host's.
func (r *reference) addLocal(reply *dns.Msg, base string) {
	reply.Authoritative = true
	qtype := reply.Question[0].Qtype
	aliased := base != "" && (qtype == dns.TypeCNAME || qtype == dns.TypeANY)
	switch {
	case aliased:
	case qtype == dns.TypeA || qtype == dns.TypeAAAA || qtype == dns.TypeANY:
		r.addAddresses(reply, dnstest.IPs("127.0.0.1", "::1"))
	default:
		r.addSOA(reply)
	}
	if base != "" {
		r.addAlias(reply, base)
	}
}

// find returns the addresses of a name, as if each host were in the table once more with
// the pod's domain: of the host of that name, else of the longest wildcard that covers
// it; and if it was once more, the name without that domain.
func (r *reference) find(name string) (found []netip.Addr, base string) {
	labels := dns.SplitDomainName(name)
	best := 0
	for _, h := range r.hosts {
		for _, full := range []string{h.Name, h.Name + "." + r.domain} {
			of := dns.SplitDomainName(full)
			n := len(of)
			switch {
			case of[0] != "*" && slices.Equal(of, labels):
				n = math.MaxInt
			case of[0] != "*" || len(labels) < n || !slices.Equal(of[1:], labels[len(labels)-n+1:]):
				continue
			}
			if n > best || n == best && full == h.Name {
				best, found, base = n, h.Addrs, ""
				if full != h.Name {
					base = strings.TrimSuffix(name, r.domain+".")
				}
			}
		}
	}
	if found == nil { // forwarded
		base = ""
	}
	return found, base
}

// vipHost returns the host that a reverse name's VIP belongs to.
func (r *reference) vipHost(name string) string {
	var all []string
	for _, h := range r.hosts {
		for _, a := range h.Addrs {
			if reverse, _ := dns.ReverseAddr(a.String()); h.VIP && reverse == name {
				all = append(all, h.Name)
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all[:min(1, len(all))], "")
}

// referenceHosts has every kind of host that is answered in its own way.
func referenceHosts() []table.Host {
	many := table.Host{Name: "many.example"}
	for i := range byte(90) {
		many.Addrs = append(many.Addrs, netip.AddrFrom4([4]byte{10, 9, 0, i}), netip.AddrFrom16([16]byte{0xfd, 15: i}))
	}
	return slices.Concat(testHosts, []table.Host{many,
		{Name: "also.aliyun.com", Addrs: dnstest.IPs("240.240.1.2", "2001:2::7"), VIP: true},
		{Name: "a.svc.cluster.local", Addrs: dnstest.IPs("10.0.0.8")},
		{Name: "*.cluster.local", Addrs: dnstest.IPs("10.0.0.9")},
		{Name: "gap.wild.example", Forwarded: true}, {Name: "*.gap.wild.example", Forwarded: true}, {Name: "b.gap.wild.example", Addrs: dnstest.IPs("fd00::7")},
		{Name: "b.default.svc.cluster.local", Addrs: dnstest.IPs("10.0.0.10")}, {Name: "b", Addrs: dnstest.IPs("10.0.0.11")},
	})
}

// keptAnswers are what the cache has, as an upstream gave it: the owner of an
// answer is a name in a zone file, "@" the question.
var keptAnswers = map[dns.Question]string{
	{Name: "hot.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:              "@ 300 IN A 192.0.2.1\n@ 300 IN A 192.0.2.2",
	{Name: "alias.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:            "@ 300 IN CNAME hot.example.\nhot.example. 20 IN A 192.0.2.1",
	{Name: "hot.example.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET}:           "---\nexample. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "none.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:             "NX\n---\nexample. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "lost.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:             "NX\n@ 300 IN CNAME none.example.\n---\nexample. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "aliyun.com.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}:             "NX\n---\ncom. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "a.wild.example.", Qtype: dns.TypeHTTPS, Qclass: dns.ClassINET}:       "---\nexample. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "gap.wild.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:         "@ 300 IN A 192.0.2.7",
	{Name: "a.gap.wild.example.", Qtype: dns.TypeA, Qclass: dns.ClassINET}:       "NX\n---\nexample. 60 IN SOA a. b. 1 2 3 4 60",
	{Name: "dual.example.", Qtype: dns.TypeSRV, Qclass: dns.ClassINET}:           "@ 300 IN SRV 1 2 3 dual.example.",
	{Name: "long.example.", Qtype: dns.TypeTXT, Qclass: dns.ClassINET}:           `@ 300 IN TXT "` + strings.Repeat("x", 250) + `" "` + strings.Repeat("y", 250) + `"`,
	{Name: "2.1.240.240.in-addr.arpa.", Qtype: dns.TypeA, Qclass: dns.ClassINET}: "NX\n---\narpa. 60 IN SOA a. b. 1 2 3 4 60",
}

// newReference returns a server that keeps keptAnswers, and its reference.
func newReference(t testing.TB) (*Server, *reference) {
	now := time.Unix(1000, 0)
	r := &reference{hosts: referenceHosts(), domain: dnstest.Domain, ttl: 30}
	var mu sync.Mutex // the upstream may be asked late, and twice
	cached := map[dns.Question]*dns.Msg{}
	up := dnstest.NewUpstream(t, func(request []byte, tcp bool) []byte {
		var asked dns.Msg
		if asked.Unpack(request) != nil {
			return nil
		}
		rcode, text := 0, keptAnswers[asked.Question[0]]
		if rest, ok := strings.CutPrefix(text, "NX\n"); ok {
			rcode, text = dns.RcodeNameError, rest
		}
		kept := new(dns.Msg)
		if err := kept.Unpack(dnstest.Zone(rcode, strings.ReplaceAll(text, "@", asked.Question[0].Name))(request, tcp)); err != nil {
			return nil
		}
		kept.AuthenticatedData, kept.Extra = true, nil
		kept.Compress = true // as servers do
		msg, _ := kept.Pack()
		mu.Lock()
		defer mu.Unlock()
		cached[asked.Question[0]] = kept
		return msg
	})
	s := newServer(t, Config{Upstream: upstream.Config{ResolvConf: dnstest.WriteConf(t, dnstest.Nameserver(up.Addr))}, Now: func() time.Time { return now }})
	s.Swap(table.New(r.hosts))
	via := new(cache.Flights)
	via.Transport.Open(context.Background(), true)
	defer via.Transport.End()
	for question := range keptAnswers {
		for flags := range 8 { // each is kept by itself
			m := &dns.Msg{Question: []dns.Question{question}}
			m.RecursionDesired, m.CheckingDisabled = flags&1 != 0, flags&2 != 0
			if flags&4 != 0 {
				m.SetEdns0(1232, true)
			}
			request, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			q := new(wire.Query)
			q.Parse(request, wire.MaxMessage)
			if a := s.Cache.Serve(t.Context(), q, cache.Miss{}, via); !wire.Good(a) {
				t.Fatalf("%v: %x", question, a.Msg)
			}
		}
	}
	if n := s.Stats().Cache.Entries; n != 8*len(keptAnswers) {
		t.Fatalf("%d answers are kept, want %d", n, 8*len(keptAnswers))
	}
	mu.Lock()
	defer mu.Unlock()
	r.cached = maps.Clone(cached)
	return s, r
}

// FuzzFastPath gives the same bytes to the fast path and to the reference: what
// one of them answers the other answers, and means the same.
func FuzzFastPath(f *testing.F) {
	s, r := newReference(f)
	for question := range keptAnswers {
		addSeeds(f, question)
		question.Qtype = dns.TypeAAAA
		addSeeds(f, question)
	}
	for _, h := range r.hosts {
		name := strings.Replace(h.Name, "*", "Ab.c", 1)
		addSeeds(f, dns.Question{Name: name + ".", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		addSeeds(f, dns.Question{Name: name + ".Cluster.local.", Qtype: dns.TypeAAAA, Qclass: dns.ClassINET})
		addSeeds(f, dns.Question{Name: name + ".Default.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET})
		addSeeds(f, dns.Question{Name: name + ".", Qtype: dns.TypeANY, Qclass: dns.ClassINET})
		for _, a := range h.Addrs[:min(1, len(h.Addrs))] {
			reverse, _ := dns.ReverseAddr(a.String())
			addSeeds(f, dns.Question{Name: reverse, Qtype: dns.TypePTR, Qclass: dns.ClassINET})
		}
	}
	for _, name := range []string{"localhost.", "a.b.LocalHost.", "localhost.svc.cluster.local.", "x.localhost.cluster.local.", "notlocalhost.", "localhost.example."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX, dns.TypeCNAME, dns.TypeANY, dns.TypeOPT, dns.TypeTSIG} {
			addSeeds(f, dns.Question{Name: name, Qtype: qtype, Qclass: dns.ClassINET})
		}
		addSeeds(f, dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassCHAOS})
		addSeeds(f, dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassANY})
	}
	// The longest names, of which the answer has two.
	for _, n := range []int{40, 49, 51} {
		long := strings.Repeat(strings.Repeat("l", n)+".", 4) + "wild.example." + dnstest.Domain + "."
		addSeeds(f, dns.Question{Name: long, Qtype: dns.TypeA, Qclass: dns.ClassINET})
		addSeeds(f, dns.Question{Name: long, Qtype: dns.TypeAAAA, Qclass: dns.ClassINET})
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, limit := range []int{0, wire.MaxMessage} {
			compareWithReference(t, s, r, msg, limit)
		}
	})
}

func addSeeds(f *testing.F, question dns.Question) {
	for _, change := range []func(*dns.Msg){func(*dns.Msg) {}, dnstest.EDNS(4096, true), dnstest.EDNS(600, false),
		func(m *dns.Msg) { m.AuthenticatedData, m.CheckingDisabled, m.RecursionDesired = true, true, false }} {
		m := new(dns.Msg).SetQuestion(question.Name, question.Qtype)
		m.Question[0].Qclass = question.Qclass
		change(m)
		msg, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
}

func compareWithReference(t *testing.T, s *Server, r *reference, msg []byte, limit int) {
	t.Helper()
	q := new(wire.Query)
	reply, _, done := chainOf(s).respond(q, msg, limit, nil)
	var m dns.Msg
	if err := m.Unpack(msg); err != nil || !dnstest.Plain(msg, &m) || len(q.Question()) == 0 {
		return // FuzzQuery says what becomes of those
	}
	want := r.answer(&m)
	if want == nil || !done {
		if done != (want != nil) {
			t.Fatalf("%v: answered by the fast path: %v, by the reference: %v", m.Question, done, want)
		}
		return
	}
	got := new(dns.Msg)
	if err := got.Unpack(reply); err != nil {
		t.Fatalf("reply %x: %v", reply, err)
	}
	if len(reply) > q.Limit {
		t.Fatalf("%d bytes for a client that takes %d", len(reply), q.Limit)
	}
	if got.Truncated {
		compareTruncated(t, q.Limit, len(reply), got, want)
		want.Truncated, want.Answer, want.Ns, got.Answer, got.Ns = true, nil, nil, nil, nil
	}
	if diff := cmp.Diff(meaning(want), meaning(got), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("%v\nfast path against reference: %s", &m, diff)
	}
}

// compareTruncated sees that got has nothing but what want has, and that want
// does not fit.
func compareTruncated(t *testing.T, limit, size int, got, want *dns.Msg) {
	t.Helper()
	want.Compress = true
	if whole := want.Len(); whole <= limit {
		t.Fatalf("truncated to %d bytes of %d, the client takes %d", size, whole, limit)
	}
	left := meaning(want)
	for _, rr := range meaning(got)[1:] {
		at := slices.Index(left, rr)
		if at < 0 {
			t.Fatalf("%s is not in the whole answer: %v", rr, left)
		}
		left = slices.Delete(left, at, at+1)
	}
	record := 16 // of an A record, its owner compressed
	if len(want.Answer) > 0 && want.Answer[len(want.Answer)-1].Header().Rrtype == dns.TypeAAAA {
		record = 28
	}
	if len(want.Ns) > 0 { // a SOA, its names compressed
		record = 12 + 2 + len("?nobody?invalid?") + 5*4
	}
	if len(want.Answer) > 0 && len(got.Answer) == 0 {
		if alias, ok := want.Answer[0].(*dns.CNAME); ok { // nothing goes without it
			record = 12 + len(alias.Target) + 1
		}
	}
	if want.Authoritative && size+record <= limit {
		t.Fatalf("room for another record: %d bytes of %d", size, limit)
	}
}

// meaning is a message as text, with its records in one order. The case of names
// says something in the question, and in our own records; an upstream's records
// have that of the question where they are compressed into it.
func meaning(m *dns.Msg) []string {
	list := []string{fmt.Sprint(m.MsgHdr, m.Question)}
	for name, section := range map[string][]dns.RR{"answer": m.Answer, "authority": m.Ns, "additional": m.Extra} {
		for _, rr := range section {
			text := name + " " + rr.String()
			if !m.Authoritative {
				text = strings.ToLower(text)
			}
			list = append(list, text)
		}
	}
	slices.Sort(list[1:])
	return list
}

// The slow path makes the same of a query that had to wait, as of one that
// came before the first table.
func TestWaitIsLikeTheFastPath(t *testing.T) {
	s, r := newReference(t)
	for _, h := range r.hosts {
		if h.Forwarded {
			continue
		}
		name := strings.Replace(h.Name, "*", "x", 1)
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeANY} {
			m := new(dns.Msg).SetQuestion(name+".", qtype)
			msg, _ := m.Pack()
			q := new(wire.Query)
			q.Parse(msg, wire.MaxMessage)
			got := new(dns.Msg)
			if err := got.Unpack(chainOf(s).wait(context.Background(), q, found{})); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(meaning(r.answer(m)), meaning(got)); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}
