package dnsproxy

import (
	"bytes"
	"net/netip"
)

const (
	reverse4 = ".in-addr.arpa" // RFC 1035 section 3.5
	reverse6 = ".ip6.arpa"     // RFC 3596 section 2.5
)

// parseReverse returns the address that a dotted lower-case reverse name
// stands for.
func parseReverse(name []byte) (netip.Addr, bool) {
	if labels, ok := cutSuffix(name, reverse4); ok {
		return parseReverse4(labels)
	}
	if labels, ok := cutSuffix(name, reverse6); ok {
		return parseReverse6(labels)
	}
	return netip.Addr{}, false
}

func parseReverse4(labels []byte) (netip.Addr, bool) {
	var b [4]byte
	for i := range b {
		label, rest, more := bytes.Cut(labels, []byte("."))
		if more != (i < 3) || len(label) == 0 || len(label) > 3 || (len(label) > 1 && label[0] == '0') {
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
		labels = rest
	}
	return netip.AddrFrom4(b), true
}

func parseReverse6(labels []byte) (netip.Addr, bool) {
	const nibbles = 32
	if len(labels) != 2*nibbles-1 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range nibbles {
		c := labels[2*i]
		var v byte
		switch {
		case '0' <= c && c <= '9':
			v = c - '0'
		case 'a' <= c && c <= 'f':
			v = c - 'a' + 10
		default:
			return netip.Addr{}, false
		}
		if i < nibbles-1 && labels[2*i+1] != '.' {
			return netip.Addr{}, false
		}
		at := nibbles - 1 - i
		b[at/2] |= v << (4 * (1 - at%2))
	}
	return netip.AddrFrom16(b), true
}
