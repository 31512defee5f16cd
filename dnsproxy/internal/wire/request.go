package wire

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
)

// NewRequest returns the query that is sent for q, with an id of its own and
// the name in lower case, so that all who ask the same share the answer. AD
// asks for the AD bit in the answer (RFC 6840 section 5.7).
func NewRequest(q *Query, edns bool) []byte {
	msg := make([]byte, HeaderLen, HeaderLen+int(q.questionN)+OptLen)
	SetRandomID(msg)
	binary.BigEndian.PutUint16(msg[2:], q.flags&(FlagRD|FlagCD)|FlagAD)
	binary.BigEndian.PutUint16(msg[4:], 1)
	msg = append(msg, q.Name()...)
	msg = binary.BigEndian.AppendUint16(msg, q.Type)
	msg = binary.BigEndian.AppendUint16(msg, q.Class)
	if edns {
		msg = AppendOPT(msg, q.DO, 0)
	}
	return msg
}

// SetRandomID gives msg an id that nobody guesses.
func SetRandomID(msg []byte) { rand.Read(msg[:2]) } // never fails

// IsReply says whether msg answers request: its id and its question. A server
// that could not read the question need not repeat it (RFC 6891 section 7).
func IsReply(msg, request []byte) bool {
	if len(msg) < HeaderLen || msg[0] != request[0] || msg[1] != request[1] ||
		FlagsOf(msg)&(FlagQR|Opcodes) != FlagQR {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		code := RcodeOf(msg)
		return code != RcodeSuccess && code != RcodeNXDomain
	case 1:
		return SameQuestion(msg[HeaderLen:], request[HeaderLen:])
	}
	return false
}

// SameQuestion compares the question that b begins with to that of a, without
// regard to case in the name.
func SameQuestion(a, b []byte) bool {
	n, ok := SkipName(b, 0)
	if !ok || len(a) < n+4 || !bytes.Equal(a[n:n+4], b[n:n+4]) {
		return false
	}
	for i := range n {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}
