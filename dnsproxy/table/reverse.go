package table

import (
	"bytes"
	"net/netip"
)

// The domains of reverse names, in wire form without the root.
const (
	reverse4 = "\x07in-addr\x04arpa" // RFC 1035 section 3.5
	reverse6 = "\x03ip6\x04arpa"     // RFC 3596 section 2.5
)

// parseReverse returns the address that a lower-case reverse name, in wire form
// without the root, stands for.
func parseReverse(name []byte) (netip.Addr, bool) {
	if labels, ok := bytes.CutSuffix(name, []byte(reverse4)); ok {
		return parseReverse4(labels)
	}
	if labels, ok := bytes.CutSuffix(name, []byte(reverse6)); ok {
		return parseReverse6(labels)
	}
	return netip.Addr{}, false
}

// parseReverse4 wants four labels: the bytes, least significant first.
func parseReverse4(labels []byte) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		if len(labels) == 0 || int(labels[0]) >= len(labels) {
			return netip.Addr{}, false
		}
		label := labels[1 : 1+int(labels[0])]
		if len(label) == 0 || len(label) > 3 || (len(label) > 1 && label[0] == '0') {
			return netip.Addr{}, false
		}
		v := 0
		for _, c := range label {
			if c < '0' || c > '9' {
				return netip.Addr{}, false
			}
			v = v*10 + int(c-'0')
		}
		if v > 255 {
			return netip.Addr{}, false
		}
		b[3-i] = byte(v)
		labels = labels[1+len(label):]
	}
	return netip.AddrFrom4(b), len(labels) == 0
}

// parseReverse6 wants 32 labels: the nibbles, least significant first.
func parseReverse6(labels []byte) (netip.Addr, bool) {
	const nibbles = 32
	if len(labels) != 2*nibbles {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range nibbles {
		c := labels[2*i+1]
		var v byte
		switch {
		case labels[2*i] != 1:
			return netip.Addr{}, false
		case '0' <= c && c <= '9':
			v = c - '0'
		case 'a' <= c && c <= 'f':
			v = c - 'a' + 10
		default:
			return netip.Addr{}, false
		}
		at := nibbles - 1 - i
		b[at/2] |= v << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
