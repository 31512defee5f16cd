package wire

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// SkipName returns the offset behind the name at off. It does not follow
// compression pointers; it only sees that the name stays in the message.
func SkipName(msg []byte, off int) (int, bool) {
	for off < len(msg) {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1, true
		case n >= 0xC0:
			return off + 2, off+2 <= len(msg)
		case n > 63: // 01 and 10 are reserved, RFC 1035 section 4.1.4
			return 0, false
		}
		off += 1 + n
	}
	return 0, false
}

// AppendName appends the wire form of a dotted lower-case name. False when the
// name cannot be one: an empty label, one over 63 octets, over 255 in all.
func AppendName(dst []byte, name string) ([]byte, bool) {
	if len(name) > MaxWireName-2 {
		return dst, false
	}
	start := len(dst)
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 {
			return dst[:start], false
		}
		dst = append(dst, byte(len(label)))
		dst = append(dst, label...)
	}
	return append(dst, 0), true
}

// lower returns c in lower case, for ASCII only, as DNS compares (RFC 4343).
func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + ('a' - 'A')
	}
	return c
}

// minPointer is the least first octet of a compression pointer.
const minPointer = 0xC0

// readName reads the name at off to its end, wherever compression leads, and
// returns the offset behind it. A pointer must lead to what stands wholly before
// the part of the name that it ends, a prior occurrence as RFC 1035 section
// 4.1.4 says: so no name is without end, and none is made of what was no name.
func readName(msg []byte, off int) (end int, ok bool) {
	part, limit, length := off, len(msg), 1
	for off < limit {
		n := int(msg[off])
		switch {
		case n == 0:
			return max(end, off+1), length <= MaxWireName
		case n < 64:
			length += 1 + n
			off += 1 + n
		case n < minPointer || off+2 > limit:
			return 0, false
		default:
			if end == 0 {
				end = off + 2
			}
			if off = int(binary.BigEndian.Uint16(msg[off:])) &^ (minPointer << 8); off >= part || off < HeaderLen {
				return 0, false
			}
			part, limit = off, part
		}
	}
	return 0, false
}

// sameName says whether the names at two offsets are the same. Both were read by
// readName, or are the question's.
func sameName(msg []byte, a, b int) bool {
	for a != b {
		for msg[a] >= minPointer {
			a = int(binary.BigEndian.Uint16(msg[a:])) &^ (minPointer << 8)
		}
		for msg[b] >= minPointer {
			b = int(binary.BigEndian.Uint16(msg[b:])) &^ (minPointer << 8)
		}
		n := int(msg[a])
		if n != int(msg[b]) {
			return false
		}
		if n == 0 {
			return true
		}
		for i := range n {
			if lower(msg[a+1+i]) != lower(msg[b+1+i]) {
				return false
			}
		}
		a, b = a+1+n, b+1+n
	}
	return true
}

// CutDomain returns name without a domain that it ends with, label by label;
// nil when it does not, when nothing would be left, and without a domain.
func CutDomain(name, domain []byte) []byte {
	n := len(name) - len(domain)
	if n <= 0 || len(domain) == 0 || !bytes.Equal(name[n:], domain) {
		return nil
	}
	at := 0
	for at < n {
		at += 1 + int(name[at])
	}
	if at != n { // the domain's first label is the end of a longer one
		return nil
	}
	return name[:n]
}

// Normal returns name as the table compares it: lower case, no final dot.
func Normal(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// Dotted returns a name of a table, in wire form without the root, with dots.
func Dotted(wire []byte) string {
	text := make([]byte, 0, len(wire))
	for len(wire) > 0 {
		n := 1 + int(wire[0])
		if len(text) > 0 {
			text = append(text, '.')
		}
		text = append(text, wire[1:n]...)
		wire = wire[n:]
	}
	return string(text)
}
