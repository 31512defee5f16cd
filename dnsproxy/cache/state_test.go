package cache

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/tests/dnstest"
)

var testUpstream = netip.MustParseAddrPort("192.0.2.53:53")

// cacheAt has no upstream: what it answers it has in its cache, and nothing that is asked
// for meanwhile can fail.
func cacheAt(t testing.TB, now *dnstest.Clock) *testCache {
	t.Helper()
	return startCache(t, Config{Now: now.Now, NoPrefetch: true}, upstream.Config{})
}

// keep puts an upstream's answer into the cache.
func keep(t testing.TB, s *testCache, name string, qtype uint16, rcode int, text string, change ...func(*dns.Msg)) {
	t.Helper()
	msg := dnstest.Question(t, name, qtype, change...)
	q := new(wire.Query)
	if q.Parse(msg, wire.MaxMessage) != wire.AnswerIt {
		t.Fatalf("%s is no query", name)
	}
	reply, err := wire.Canonical(dnstest.Zone(rcode, text)(msg, true), q)
	if err != nil {
		t.Fatal(err)
	}
	s.put(string(appendKey(nil, q)), wire.Answer{Msg: reply, Source: wire.SourceUpstream, Server: testUpstream})
}

// answerTo is what s answers: nil when it would have to ask.
func answerTo(s *testCache, msg []byte) []byte {
	q := new(wire.Query)
	if q.Parse(msg, wire.MaxMessage) != wire.AnswerIt {
		return nil
	}
	a, _, ok := s.Fast(q, nil, s.via)
	if !ok {
		return nil
	}
	return wire.Finish(q, a.Msg)
}

// names are the keys in a cache, the one used last first.
func names(s *testCache) (list []string) {
	for _, e := range slices.Backward(s.lru.Values()) {
		q, _ := queryOf([]byte(e.key))
		name, _, _ := dns.UnpackDomainName(q.Name(), 0)
		list = append(list, name)
	}
	return list
}

// A successor answers to the byte what its predecessor would, for as long.
func TestCacheMovesOver(t *testing.T) {
	now := dnstest.NewClock()
	first := cacheAt(t, now)
	const soa = "---\nexample. 300 IN SOA a. b. 1 2 3 4 120"
	checking := func(m *dns.Msg) { m.CheckingDisabled = true }
	plain := func(m *dns.Msg) { m.RecursionDesired = false }
	keep(t, first, "short.example", dns.TypeA, 0, "short.example. 20 IN A 192.0.2.1")
	keep(t, first, "long.example", dns.TypeA, 0, "long.example. 200 IN CNAME y.example.\ny.example. 60 IN A 192.0.2.2")
	keep(t, first, "none.example", dns.TypeAAAA, dns.RcodeNameError, soa)
	keep(t, first, "flags.example", dns.TypeA, 0, "flags.example. 90 IN A 192.0.2.3", dnstest.EDNS(1232, true), checking, plain)
	keep(t, first, "flags.example", dns.TypeA, 0, "flags.example. 90 IN A 192.0.2.4")
	questions := [][]byte{
		dnstest.Question(t, "short.example", dns.TypeA), dnstest.Question(t, "LONG.example", dns.TypeA), dnstest.Question(t, "none.example", dns.TypeAAAA),
		dnstest.Question(t, "flags.example", dns.TypeA, dnstest.EDNS(1232, true), checking, plain), dnstest.Question(t, "flags.example", dns.TypeA),
		dnstest.Question(t, "other.example", dns.TypeA),
	}
	now.Add(30*time.Second + 400*time.Millisecond) // the short one expires
	data := first.Export(1 << 20)
	now.Add(10*time.Second + 700*time.Millisecond) // the way to the other process
	second := cacheAt(t, now)
	if n, err := second.Import(data); n != 5 || err != nil {
		t.Fatalf("%d entries, %v", n, err)
	}
	for range 5 {
		for i, q := range questions {
			if a, b := answerTo(first, q), answerTo(second, q); !bytes.Equal(a, b) {
				t.Errorf("question %d at %s:\n%x, the predecessor says\n%x", i, now.Now().Format(time.TimeOnly), b, a)
			}
		}
		now.Add(20 * time.Second)
	}
	if r := answerTo(second, questions[1]); r != nil {
		t.Errorf("kept for ever: %x", r)
	}
	if n, err := second.Import(data); n != 0 || err != nil {
		t.Errorf("a second time, late: %d entries, %v", n, err)
	}
}

// The entries used last come first, and are used last in the copy too.
func TestExportCacheBounds(t *testing.T) {
	now := dnstest.NewClock()
	s := cacheAt(t, now)
	for i := range 50 {
		name := fmt.Sprintf("n%d.example.", i)
		keep(t, s, name, dns.TypeA, 0, name+" 60 IN A 192.0.2.1")
	}
	answerTo(s, dnstest.Question(t, "n7.example", dns.TypeA)) // now the hottest
	want := names(s)
	all := len(s.Export(1 << 20))
	for _, size := range []int{-1, 0, 8, 9, 60, 500, 1500, all - 1, all, all + 1} {
		data := s.Export(size)
		if len(data) > max(size, 0) {
			t.Errorf("%d bytes, room for %d", len(data), size)
		}
		copied := cacheAt(t, now)
		if n, err := copied.Import(data); size >= stateHeader && (err != nil || n != len(names(copied))) {
			t.Errorf("%d bytes: %d entries, %v", size, n, err)
		}
		got := names(copied)
		if !slices.Equal(got, want[:len(got)]) {
			t.Errorf("%d bytes: %v, want the beginning of %v", size, got, want)
		}
		if size >= all && len(got) != len(want) || size == 1500 && len(got) < 10 {
			t.Errorf("%d bytes: only %d entries", size, len(got))
		}
	}
	few := startCache(t, Config{Now: now.Now, Entries: 5}, upstream.Config{})
	if _, err := few.Import(s.Export(all)); err != nil || !slices.Equal(names(few), want[:5]) {
		t.Errorf("in a smaller cache: %v, %v", names(few), err)
	}
}

func TestImportCacheNewerWins(t *testing.T) {
	now := dnstest.NewClock()
	first, second := cacheAt(t, now), cacheAt(t, now)
	set := func(s *testCache, name, addr string) { keep(t, s, name, dns.TypeA, 0, name+" 60 IN A "+addr) }
	set(second, "old.example.", "192.0.2.1")
	now.Add(time.Second)
	set(first, "old.example.", "192.0.2.2")
	set(first, "new.example.", "192.0.2.2")
	now.Add(time.Second)
	set(second, "new.example.", "192.0.2.3")
	if n, err := second.Import(first.Export(1 << 20)); n != 1 || err != nil {
		t.Errorf("%d entries, %v", n, err)
	}
	for name, want := range map[string]string{"old.example": "192.0.2.2", "new.example": "192.0.2.3"} {
		if r := second.ask(t, name, dns.TypeA); len(r.Answer) != 1 || !strings.HasSuffix(r.Answer[0].String(), want) {
			t.Errorf("%s: %v", name, r)
		}
	}
}

// Wherever it is cut or a bit is flipped, nothing is imported.
func TestImportCacheDamage(t *testing.T) {
	now := dnstest.NewClock()
	first := cacheAt(t, now)
	keep(t, first, "a.example", dns.TypeA, 0, "a.example. 60 IN A 192.0.2.1")
	keep(t, first, "b.example", dns.TypeA, dns.RcodeNameError, "---\nexample. 300 IN SOA a. b. 1 2 3 4 60")
	good := first.Export(1 << 20)
	refused := func(what string, data []byte) {
		t.Helper()
		s := cacheAt(t, now)
		if n, err := s.Import(data); n != 0 || err == nil || s.Stats().Entries != 0 {
			t.Errorf("%s: %d entries, error %v, %d in the cache", what, n, err, s.Stats().Entries)
		}
	}
	for n := range good {
		refused(fmt.Sprintf("cut at %d", n), good[:n])
		bad := bytes.Clone(good)
		bad[n] ^= 0x10
		refused(fmt.Sprintf("byte %d", n), bad)
	}
	refused("more behind it", append(bytes.Clone(good), 0))
	refused("too large", make([]byte, maxState+1))
}

// sealed is a cache whose only fault is in the last entry.
func sealed(good []byte, stored time.Time, server, key, msg []byte) []byte {
	out := binary.BigEndian.AppendUint64(bytes.Clone(good), uint64(stored.UnixNano()))
	return seal(appendSized(appendSized(appendSized(out, server), key), msg))
}

// What has a good checksum and is no cache of ours is refused as a whole.
func TestImportCacheHostile(t *testing.T) {
	now := dnstest.NewClock()
	first := cacheAt(t, now)
	keep(t, first, "good.example", dns.TypeA, 0, "good.example. 60 IN A 192.0.2.1")
	good := first.Export(1 << 20)
	keep(t, first, "a.example", dns.TypeA, 0, "a.example. 60 IN A 192.0.2.1")
	last := first.lru.Values()[1]
	key, msg := []byte(last.key), last.msg
	server, err := testUpstream.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(b []byte, change func([]byte)) []byte {
		b = bytes.Clone(b)
		change(b)
		return b
	}
	flag := func(b byte) func([]byte) { return func(m []byte) { m[2] ^= b } }
	rcode := func(code byte) func([]byte) { return func(m []byte) { m[3] |= code } }
	for name, data := range map[string][]byte{
		"no key":             sealed(good, now.Now(), server, nil, msg),
		"short key":          sealed(good, now.Now(), server, key[:5], msg),
		"long key":           sealed(good, now.Now(), server, bytes.Repeat([]byte{1}, 300), msg),
		"unknown key flag":   sealed(good, now.Now(), server, edit(key, func(k []byte) { k[4] |= 8 }), msg),
		"upper-case key":     sealed(good, now.Now(), server, edit(key, func(k []byte) { k[6] = 'A' }), msg),
		"another name":       sealed(good, now.Now(), server, edit(key, func(k []byte) { k[6] = 'b' }), msg),
		"another type":       sealed(good, now.Now(), server, edit(key, func(k []byte) { k[1] = wire.TypeAAAA }), msg),
		"a transfer":         sealed(good, now.Now(), server, edit(key, func(k []byte) { k[1] = byte(dns.TypeAXFR) }), msg),
		"compressed key":     sealed(good, now.Now(), server, append(bytes.Clone(key[:5]), 0xC0, 12), msg),
		"no message":         sealed(good, now.Now(), server, key, nil),
		"a query":            sealed(good, now.Now(), server, key, edit(msg, flag(0x80))),
		"truncated":          sealed(good, now.Now(), server, key, edit(msg, flag(0x02))),
		"a notify":           sealed(good, now.Now(), server, key, edit(msg, flag(0x20))),
		"servfail":           sealed(good, now.Now(), server, key, edit(msg, rcode(2))),
		"no question":        sealed(good, now.Now(), server, key, edit(msg, func(m []byte) { m[5] = 0 })),
		"two questions":      sealed(good, now.Now(), server, key, edit(msg, func(m []byte) { m[5] = 2 })),
		"no records":         sealed(good, now.Now(), server, key, edit(msg, func(m []byte) { m[7] = 0 })),
		"cut message":        sealed(good, now.Now(), server, key, msg[:len(msg)-1]),
		"ttl of zero":        sealed(good, now.Now(), server, key, edit(msg, func(m []byte) { clear(m[len(m)-10 : len(m)-6]) })),
		"half an address":    sealed(good, now.Now(), server[:4], key, msg),
		"length beyond end":  seal(append(bytes.Clone(good), 0, 0, 0, 0, 0, 0, 0, 1, 0xFF, 0xFF, 1)),
		"cut in the lengths": seal(append(bytes.Clone(good), 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0)),
	} {
		s := cacheAt(t, now)
		if n, err := s.Import(data); n != 0 || err == nil || s.Stats().Entries != 0 {
			t.Errorf("%s: %d entries, error %v, %d in the cache", name, n, err, s.Stats().Entries)
		} else if !strings.Contains(err.Error(), "entry 1") {
			t.Errorf("%s: %q does not say where", name, err)
		}
	}
	// One from the future lives no longer than its TTL.
	s := cacheAt(t, now)
	if n, err := s.Import(sealed(good, now.Now().Add(100*time.Hour), server, key, msg)); n != 2 || err != nil {
		t.Errorf("from the future: %d entries, %v", n, err)
	}
	now.Add(61 * time.Second)
	if r := answerTo(s, dnstest.Question(t, "a.example", dns.TypeA)); r != nil {
		t.Errorf("from the future: kept too long: %x", r)
	}
}

// FuzzImportCache: whatever comes, what is in the cache afterwards can be
// answered, ends with its TTL, and can be handed on.
func FuzzImportCache(f *testing.F) {
	now := dnstest.NewClock()
	s := cacheAt(f, now)
	keep(f, s, "a.example", dns.TypeA, 0, "a.example. 60 IN A 192.0.2.1")
	keep(f, s, "b.example", dns.TypeMX, 0, "b.example. 60 IN MX 5 c.b.example.\n---\n", dnstest.EDNS(1232, true))
	keep(f, s, "c.example", dns.TypeA, dns.RcodeNameError, "---\nexample. 300 IN SOA a. b. 1 2 3 4 60")
	f.Add(s.Export(1 << 20))
	f.Add(s.Export(100))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := cacheAt(t, now)
		if len(data) >= stateHeader {
			seal(data)
		}
		n, err := s.Import(data)
		if err != nil && (n != 0 || s.Stats().Entries != 0) {
			t.Fatalf("%v, and %d entries", err, s.Stats().Entries)
		}
		entries := s.lru.Values()
		for _, e := range entries {
			q, ok := queryOf([]byte(e.key))
			if !ok || e.ttl <= 0 || e.ttl > maxPositive || e.stored.After(now.Now()) {
				t.Fatalf("entry %+v", e)
			}
			a, _, ok := s.Fast(q, nil, s.via)
			if !ok {
				t.Fatalf("%q cannot be found", e.key)
			}
			var m dns.Msg
			if err := m.Unpack(wire.Finish(q, a.Msg)); err != nil || len(m.Question) != 1 || m.Truncated || !m.Response {
				t.Fatalf("answer %x: %v", a.Msg, err)
			}
		}
		if n, err := cacheAt(t, now).Import(s.Export(maxState)); n != len(entries) || err != nil {
			t.Fatalf("handed on: %d of %d entries, %v", n, len(entries), err)
		}
	})
}

// BenchmarkImportCache is a full cache, as at an upgrade.
func BenchmarkImportCache(b *testing.B) {
	now := dnstest.NewClock()
	s := cacheAt(b, now)
	for i := range defaultEntries {
		name := fmt.Sprintf("host-%d.some.longer.zone.example.", i)
		keep(b, s, name, dns.TypeA, 0, name+" 60 IN CNAME x."+name+"\nx."+name+" 60 IN A 192.0.2.1")
	}
	data := s.Export(maxState)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if n, err := cacheAt(b, now).Import(data); n != defaultEntries || err != nil {
			b.Fatal(n, err)
		}
	}
}

// The form in which another release takes the cache over.
func TestStateIsAsReleased(t *testing.T) {
	at := time.Unix(1700000000, 0)
	s := startCache(t, Config{Now: func() time.Time { return at }}, upstream.Config{})
	keep(t, s, "a.example", dns.TypeA, 0, "a.example. 60 IN A 192.0.2.1")
	const want = "55444e4301e1994af517979cfe362a00000006c00002353500001000010001040161076578616d706c6500002b1267818000010001000000000161076578616d706c650000010001c00c000100010000003c0004c0000201"
	if got := fmt.Sprintf("%x", s.Export(1<<20)); got != want {
		t.Errorf("%s", got)
	}
}
