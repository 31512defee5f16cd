package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/miekg/dns"
)

// Canonical returns an upstream's reply in the form that answers have here:
// question first, no OPT, nothing that was not asked (see related), compressed;
// in memory of its own, with room for an OPT. A malformed one is never handed on.
// The reply has one question, q's, or none (see IsReply).
func Canonical(reply []byte, q *Query) ([]byte, error) {
	if end, ok := isPlain(reply, q); ok {
		msg := append(make([]byte, 0, end+OptLen), reply[:end]...)
		if end < len(reply) { // an OPT was cut off
			SetCount(msg, sectionAdditional, int(binary.BigEndian.Uint16(msg[10:]))-1)
		}
		return msg, nil
	}
	return repack(reply, q)
}

// isPlain says whether reply is canonical but for an OPT record at its end, and
// where it ends without. It knows the records that nearly all answers have; one
// with others is read in full.
func isPlain(reply []byte, q *Query) (end int, ok bool) {
	const z = 1 << 6
	start := HeaderLen + int(q.LowerN) + 4
	if binary.BigEndian.Uint16(reply[4:]) != 1 || FlagsOf(reply)&z != 0 || len(reply) < start ||
		string(reply[HeaderLen:start-4]) != string(q.Name()) {
		return 0, false
	}
	name := HeaderLen // whose records may come next: the question's, or its alias'
	walk := RecordsOf(reply, start)
	for rec, more := walk.Next(); more; rec, more = walk.Next() {
		if rec.Type == typeOPT {
			last := walk.left[sectionAdditional] == 0 && rec.End == len(reply)
			return rec.start, last && plainOPT(rec)
		}
		if !plainRecord(reply, rec) {
			return 0, false
		}
		switch rec.Section {
		case sectionAdditional:
			return 0, false
		case SectionAnswer:
			if !sameName(reply, rec.start, name) {
				return 0, false
			}
			if rec.Type == TypeCNAME {
				name = rec.Data
			}
		}
	}
	return walk.off, walk.Err == nil && walk.off == len(reply)
}

// plainOPT says whether an OPT record extends the RCODE by nothing and has no
// options, which servers add to few answers and in many forms.
func plainOPT(rec Record) bool {
	return rec.Section == sectionAdditional && rec.root && rec.TTL>>24 == 0 && rec.Data == rec.End
}

// plainRecord says whether a record has names that can be read and data that
// its type must have. A long message's owners must be compressed.
func plainRecord(msg []byte, rec Record) bool {
	if rec.class != classIN || len(msg) > MinUDPSize && msg[rec.start] < minPointer {
		return false
	}
	if _, ok := readName(msg, rec.start); !ok {
		return false
	}
	data := msg[rec.Data:rec.End]
	switch rec.Type {
	case TypeA:
		return len(data) == 4
	case TypeAAAA:
		return len(data) == 16
	case TypeNS, TypeCNAME, TypePTR:
		return namesFill(msg[:rec.End], rec.Data, 1, 0)
	case TypeSOA:
		return namesFill(msg[:rec.End], rec.Data, 2, 5*4)
	case dns.TypeMX:
		return len(data) > 2 && namesFill(msg[:rec.End], rec.Data+2, 1, 0)
	case dns.TypeSRV:
		return len(data) > 6 && namesFill(msg[:rec.End], rec.Data+6, 1, 0)
	case dns.TypeTXT:
		return stringsFill(data)
	}
	return false
}

// namesFill says whether msg from off on is that many names and then that many
// octets.
func namesFill(msg []byte, off, names, octets int) bool {
	for range names {
		end, ok := readName(msg, off)
		if !ok {
			return false
		}
		off = end
	}
	return off+octets == len(msg)
}

// stringsFill says whether data is character-strings, one at least.
func stringsFill(data []byte) bool {
	for first := true; first || len(data) > 0; first = false {
		if len(data) == 0 || len(data) <= int(data[0]) {
			return false
		}
		data = data[1+int(data[0]):]
	}
	return true
}

// repack reads a reply in full and writes it anew without its OPT record and
// compressed.
func repack(reply []byte, q *Query) ([]byte, error) {
	var m dns.Msg
	if err := m.Unpack(reply); err != nil {
		return nil, fmt.Errorf("read upstream answer: %w", err)
	}
	if m.Rcode > Rcodes { // BADVERS and the like are between it and us
		return nil, fmt.Errorf("read upstream answer: rcode %s", RcodeName(m.Rcode))
	}
	if len(m.Question) == 0 { // a refusal, see IsReply
		return AppendReply(nil, q, 0, m.Rcode), nil
	}
	if err := related(&m); err != nil {
		return nil, fmt.Errorf("read upstream answer: %w", err)
	}
	m.Zero = false
	m.Compress = true
	msg, err := m.Pack()
	if err != nil {
		return nil, fmt.Errorf("repack upstream answer: %w", err)
	}
	// Unpack forgives data that is missing at a message's end or altogether,
	// and Pack then writes what nobody can read.
	if err := m.Unpack(msg); err != nil {
		return nil, fmt.Errorf("read repacked upstream answer: %w", err)
	}
	return msg, nil
}
