package dnsproxy

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
)

// buildRequest returns the query that is sent for q, with an id of its own and
// the name in lower case, so that all who ask the same share the answer. AD
// asks for the AD bit in the answer (RFC 6840 section 5.7).
func buildRequest(q *query, edns bool) []byte {
	msg := make([]byte, headerLen, headerLen+int(q.questionN)+optLen)
	setRandomID(msg)
	binary.BigEndian.PutUint16(msg[2:], q.flags&(flagRD|flagCD)|flagAD)
	binary.BigEndian.PutUint16(msg[4:], 1)
	msg = append(msg, q.wire()...)
	msg = binary.BigEndian.AppendUint16(msg, q.qtype)
	msg = binary.BigEndian.AppendUint16(msg, q.qclass)
	if edns {
		msg = appendOPT(msg, q.do, 0)
	}
	return msg
}

func setRandomID(msg []byte) { rand.Read(msg[:2]) } // never fails

// isReply says whether msg answers request: its id and its question. A server
// that could not read the question need not repeat it (RFC 6891 section 7).
func isReply(msg, request []byte) bool {
	if len(msg) < headerLen || msg[0] != request[0] || msg[1] != request[1] ||
		flagsOf(msg)&(flagQR|opcodes) != flagQR {
		return false
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		code := rcodeOf(msg)
		return code != rcodeSuccess && code != rcodeNXDomain
	case 1:
		return sameQuestion(msg[headerLen:], request[headerLen:])
	}
	return false
}

// sameQuestion compares the question that b begins with to that of a, without
// regard to case in the name.
func sameQuestion(a, b []byte) bool {
	n, ok := skipName(b, 0)
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
