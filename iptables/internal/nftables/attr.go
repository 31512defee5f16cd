package nftables

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

const (
	attrHeader    = 4 // of an attribute: length and type, 16 bits each
	attrAlignment = 4
	attrTypeMask  = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
)

func appendAttr(b []byte, kind uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, data...)
	for len(b)%attrAlignment != 0 {
		b = append(b, 0)
	}
	return b
}

func appendNested(b []byte, kind uint16, data []byte) []byte {
	return appendAttr(b, kind|unix.NLA_F_NESTED, data)
}

func appendName(b []byte, kind uint16, name string) []byte {
	return appendAttr(b, kind, append([]byte(name), 0))
}

func appendUint32(b []byte, kind uint16, n uint32) []byte {
	return appendAttr(b, kind, binary.BigEndian.AppendUint32(nil, n))
}

// attributes yields type and data of each attribute in b, until one is cut off.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= attrHeader {
			n := int(binary.NativeEndian.Uint16(b))
			if n < attrHeader || n > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[attrHeader:n]) {
				return
			}
			b = b[min((n+attrAlignment-1)&^(attrAlignment-1), len(b)):]
		}
	}
}

// attribute returns the data of the first attribute of a type, nil when there is none.
func attribute(b []byte, kind uint16) []byte {
	for k, data := range attributes(b) {
		if k == kind {
			return data
		}
	}
	return nil
}

// attrName returns a string without the NUL at its end.
func attrName(b []byte, kind uint16) string {
	data := attribute(b, kind)
	if n := len(data); n > 0 && data[n-1] == 0 {
		data = data[:n-1]
	}
	return string(data)
}

// attrUint32 returns 0 when there is none.
func attrUint32(b []byte, kind uint16) uint32 {
	if data := attribute(b, kind); len(data) >= 4 {
		return binary.BigEndian.Uint32(data)
	}
	return 0
}
