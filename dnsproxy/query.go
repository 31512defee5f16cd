package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/miekg/dns"
)

// verdict is what to do with a message that arrived.
type verdict uint8

const (
	answerIt verdict = iota // the query is whole: ask the handlers
	rejectIt                // reply with query.rcode and nothing else
	dropIt                  // say nothing: a reply would feed a loop
)

// query is one parsed question. It is self-contained: it keeps nothing of the
// message it was read from, so the read loop may reuse its buffer.
type query struct {
	id         uint16
	flags      uint16 // as the client sent them
	qtype      uint16
	qclass     uint16
	rcode      int  // of a rejected query
	limit      int  // the largest reply the client takes, in bytes
	edns, do   bool // the query had an OPT record; its DO bit
	questionN  uint16
	lowerN     uint16
	questionAt [maxWireName + 4]byte
	lowerAt    [maxWireName]byte
	held       time.Duration // how long it waited for the first table; parse leaves it
}

// question returns the question section as the client wrote it, in its case.
func (q *query) question() []byte { return q.questionAt[:q.questionN] }

// wire returns the question's name in wire form and lower case.
func (q *query) wire() []byte { return q.lowerAt[:q.lowerN] }

func (q *query) has(flag uint16) bool { return q.flags&flag != 0 }

// parse reads msg into q. limit is the transport's largest reply: 0 stands for
// UDP, where the client's OPT record decides.
func (q *query) parse(msg []byte, limit int) verdict {
	q.questionN, q.lowerN, q.qtype, q.edns, q.do = 0, 0, 0, false, false
	q.limit = limit
	if limit == 0 {
		q.limit = minUDPSize
	}
	if len(msg) < headerLen {
		return dropIt
	}
	q.id = binary.BigEndian.Uint16(msg)
	q.flags = flagsOf(msg)
	switch {
	case q.has(flagQR):
		return dropIt
	case q.flags&opcodes != 0:
		q.seekOPT(msg)
		return q.reject(rcodeNotImp)
	case binary.BigEndian.Uint16(msg[4:]) != 1: // RFC 9619
		q.seekOPT(msg)
		return q.reject(rcodeFormErr)
	}
	off, ok := q.parseQuestion(msg)
	if !ok {
		q.questionN = 0
		return q.reject(rcodeFormErr)
	}
	return q.parseOPT(msg, off, limit == 0)
}

func (q *query) reject(rcode int) verdict {
	q.rcode = rcode
	return rejectIt
}

// seekOPT finds out whether a message that is refused for what it asks has an
// OPT record: then so has the reply (RFC 6891 section 6.1.1), lest the client
// think that EDNS was what is refused.
func (q *query) seekOPT(msg []byte) {
	off, ok := headerLen, true
	for range binary.BigEndian.Uint16(msg[4:]) {
		if off, ok = skipName(msg, off); !ok || off+4 > len(msg) {
			return
		}
		off += 4
	}
	rest := recordsOf(msg, off)
	for rec, ok := rest.next(); ok; rec, ok = rest.next() {
		if rec.typ == typeOPT && rec.root && rec.section == sectionAdditional {
			q.edns, q.do = true, rec.ttl&flagDO != 0
			return
		}
	}
}

// parseQuestion copies the question and returns the offset behind it. A
// compressed name is refused: nothing stands before it that it could point to.
func (q *query) parseQuestion(msg []byte) (int, bool) {
	off := headerLen
	for {
		if off >= len(msg) {
			return 0, false
		}
		n := int(msg[off])
		if n == 0 {
			break
		}
		end := off + 1 + n
		if n > 63 || end >= len(msg) || end-headerLen >= maxWireName {
			return 0, false
		}
		q.lowerAt[off-headerLen] = byte(n)
		for i := off + 1; i < end; i++ {
			q.lowerAt[i-headerLen] = lower(msg[i])
		}
		off = end
	}
	q.lowerAt[off-headerLen] = 0
	off++
	if off+4 > len(msg) {
		return 0, false
	}
	q.lowerN = uint16(off - headerLen)
	q.qtype = binary.BigEndian.Uint16(msg[off:])
	q.qclass = binary.BigEndian.Uint16(msg[off+2:])
	off += 4
	q.questionN = uint16(copy(q.questionAt[:], msg[headerLen:off]))
	return off, true
}

// parseOPT looks for EDNS0 in the additional section, RFC 6891 section 6.1.
// Options are ignored: none of those in use changes what a forwarder answers.
func (q *query) parseOPT(msg []byte, off int, udp bool) verdict {
	version := uint8(0)
	rest := recordsOf(msg, off)
	for rec, ok := rest.next(); ok; rec, ok = rest.next() {
		if rec.typ != typeOPT {
			continue
		}
		if q.edns || !rec.root || rec.section != sectionAdditional {
			return q.reject(rcodeFormErr)
		}
		q.edns = true
		q.do = rec.ttl&flagDO != 0
		version = uint8(rec.ttl >> 16)
		if udp {
			q.limit = min(max(int(rec.class), minUDPSize), maxUDPSize)
		}
	}
	switch {
	case rest.err != nil:
		return q.reject(rcodeFormErr)
	case version != 0:
		return q.reject(rcodeBadVers)
	case q.qclass != classIN:
		// CHAOS, HESIOD, ANY: nobody has names of the mesh or of a cluster in
		// them, and servers that drop such questions made the client wait.
		return q.reject(rcodeRefused)
	case isMeta(q.qtype):
		return q.reject(rcodeNotImp)
	}
	return answerIt
}

// isMeta says whether no record is of that type, RFC 6895 section 3.1, but for ANY.
// Such questions are about the server or the message (OPT, TSIG, TKEY), are answered by
// what a forwarder of single answers does not have (a transfer is many), or obsolete
// (MAILA).
func isMeta(qtype uint16) bool {
	const first, last = 128, 255
	return qtype == typeOPT || first <= qtype && qtype <= last && qtype != typeANY
}

// withType returns the same question about another type.
func (q *query) withType(qtype uint16) query {
	own := *q
	own.qtype = qtype
	binary.BigEndian.PutUint16(own.questionAt[own.lowerN:], qtype)
	return own
}

// below returns the same question about the name below domain, which must fit.
func (q *query) below(domain []byte) query {
	own := *q
	n := copy(own.lowerAt[q.lowerN-1:], domain) + int(q.lowerN) - 1
	own.lowerAt[n] = 0
	own.lowerN = uint16(n + 1)
	copy(own.questionAt[:], own.wire())
	binary.BigEndian.PutUint16(own.questionAt[own.lowerN:], q.qtype)
	binary.BigEndian.PutUint16(own.questionAt[own.lowerN+2:], q.qclass)
	own.questionN = own.lowerN + 4
	return own
}

// newQuery returns the query for a name in presentation form.
func newQuery(name string, qtype uint16) (*query, error) {
	var m dns.Msg
	m.SetQuestion(dns.Fqdn(name), qtype)
	msg, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("look up %q: not a DNS name: %w", name, err)
	}
	q := new(query)
	if q.parse(msg, maxMessage) != answerIt {
		return nil, fmt.Errorf("look up %q: type %s is not answered by a forwarder", name, dns.Type(qtype))
	}
	return q, nil
}
