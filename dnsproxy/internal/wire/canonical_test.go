package wire

import (
	"bytes"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/tests/dnstest"
)

// FuzzPlain compares the walk over an answer's bytes with miekg/dns: what it
// takes for canonical says the same as what that makes of it.
func FuzzPlain(f *testing.F) {
	q, err := NewQuery("x.example", dns.TypeA)
	if err != nil {
		f.Fatal(err)
	}
	request := NewRequest(q, true)
	request[0], request[1] = 1, 2
	plainSeeds := []string{
		dnstest.GoodA,
		"x.example. 60 IN CNAME y.example.\ny.example. 20 IN AAAA 2001:db8::1",
		"x.example. 60 IN MX 5 m.x.example.\n---\nx.example. 60 IN NS ns.example.",
		"x.example. 60 IN TXT \"a\" \"\"\nx.example. 60 IN SRV 1 2 3 s.example.\nx.example. 60 IN PTR p.",
		"---\nexample. 60 IN SOA a. b. 1 2 3 4 5",
		"x.example. 60 IN HTTPS 1 . alpn=h2",
	}
	for i, text := range plainSeeds {
		reply := dnstest.Zone(0, text)(request, false)
		if _, ok := isPlain(reply, q); ok != (i < len(plainSeeds)-1) {
			f.Errorf("plain %v: %s", ok, text)
		}
		f.Add(reply)
	}
	f.Add([]byte(nameOverEnd))
	f.Fuzz(func(t *testing.T, reply []byte) {
		if !IsReply(reply, request) {
			return
		}
		if _, ok := isPlain(reply, q); !ok {
			return
		}
		walked, err := Canonical(reply, q)
		if err != nil {
			t.Fatal(err)
		}
		packed, err := repack(reply, q)
		if err != nil {
			t.Fatalf("miekg/dns does not read %x: %v", reply, err)
		}
		var a, b dns.Msg
		if err := a.Unpack(walked); err != nil {
			t.Fatal(err)
		}
		if err := b.Unpack(packed); err != nil {
			t.Fatal(err)
		}
		// Text says all that the messages say, but for how they are packed.
		if a.String() != b.String() || !bytes.Equal(walked[:HeaderLen], packed[:HeaderLen]) {
			t.Fatalf("%x:\n%v\nmiekg/dns:\n%v", reply, &a, &b)
		}
	})
}

// nameOverEnd is an answer with an owner that points into a TTL, from where a
// label reaches as far as the OPT record.
const nameOverEnd = "\x01\x02\x83\x80\x00\x01\x00\x02\x00\x00\x00\x01\x01x\aexample\x00\x00\x01\x00\x01" +
	"\xc0\f\x00\x05\x00\x01\x00\x00(<\x00\x04\x01y\xc0\x0e" +
	"\xc0#\x00\x1c\x00\x01\x00\x00\x00\x14\x00\x10 \x01\r\xb8\x00\x00\x00\x00\x00\x00\xec\xec\xec\x00\x00\x00" +
	"\x00\x00)\x10\x00\x00\x00\x00\x00\x00\x00"
