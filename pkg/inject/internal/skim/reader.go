package skim

import (
	"encoding/binary"
	"math/bits"
)

// reader passes over a JSON text (RFC 8259). Once it is bad, where it is means nothing.
type reader struct {
	text []byte
	at   int
	bad  bool
}

// next is the character that comes; 0, which no JSON has, at the end.
func (r *reader) next() byte {
	if r.at < len(r.text) {
		return r.text[r.at]
	}
	return 0
}

// take passes over c, and reports whether it was there.
func (r *reader) take(c byte) bool {
	if r.next() != c {
		return false
	}
	r.at++
	return true
}

// want passes over text that has to be there.
func (r *reader) want(text string) {
	if end := r.at + len(text); end <= len(r.text) && string(r.text[r.at:end]) == text {
		r.at = end
		return
	}
	r.bad = true
}

func (r *reader) space() {
	for {
		switch r.next() {
		case ' ', '\t', '\n', '\r':
			r.at++
		default:
			return
		}
	}
}

// skip passes over a value.
func (r *reader) skip(depth int) {
	switch r.next() {
	case '"':
		r.quoted()
	case '{', '[':
		r.composite(depth - 1)
	case 't':
		r.want("true")
	case 'f':
		r.want("false")
	case 'n':
		r.want("null")
	default:
		r.number()
	}
}

func (r *reader) composite(depth int) {
	if depth < 0 {
		r.bad = true
		return
	}
	if r.next() == '[' {
		r.each(']', func(bool) { r.skip(depth) })
		return
	}
	r.each('}', func(bool) {
		r.name()
		r.skip(depth)
	})
}

// each passes over a list or an object that ends with end; member over what is between two commas.
func (r *reader) each(end byte, member func(first bool)) {
	r.at++ // the bracket
	r.space()
	if r.take(end) {
		return
	}
	for first := true; !r.bad; first = false {
		member(first)
		r.space()
		if r.take(end) {
			return
		}
		r.want(",")
		r.space()
	}
}

// name passes over a member's name and the colon; the name is as it is written.
func (r *reader) name() (name []byte, escaped bool) {
	begin := r.at + 1
	if r.next() != '"' {
		r.bad = true
		return nil, false
	}
	escaped = r.quoted()
	if r.bad {
		return nil, false
	}
	name = r.text[begin : r.at-1]
	r.space()
	r.want(":")
	r.space()
	return name, escaped
}

// quoted passes over a string, and reports whether something in it is escaped.
func (r *reader) quoted() (escaped bool) {
	for r.at++; ; {
		r.plain()
		switch r.next() {
		case '"':
			r.at++
			return escaped
		case '\\':
			escaped = true
			r.escape()
		default: // a control character, or the end
			r.bad = true
		}
		if r.bad {
			return escaped
		}
	}
}

// plain passes over what stands for itself in a string, eight characters at a time: most of a text is in strings.
func (r *reader) plain() {
	const each, high = 0x0101010101010101, 0x8080808080808080
	for ; r.at+8 <= len(r.text); r.at += 8 {
		word := binary.LittleEndian.Uint64(r.text[r.at:])
		quote, slash := word^each*'"', word^each*'\\'
		// The high bit of each byte that is one of these, and maybe of some behind the first.
		if found := ((quote-each)&^quote | (slash-each)&^slash | (word-each*' ')&^word) & high; found != 0 {
			r.at += bits.TrailingZeros64(found) / 8
			return
		}
	}
	for r.at < len(r.text) && r.text[r.at] >= ' ' && r.text[r.at] != '"' && r.text[r.at] != '\\' {
		r.at++
	}
}

func (r *reader) escape() {
	r.at++
	switch r.next() {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		r.at++
	case 'u':
		r.at++
		for range 4 {
			switch c := r.next(); {
			case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
				r.at++
			default:
				r.bad = true
			}
		}
	default:
		r.bad = true
	}
}

func (r *reader) number() {
	r.take('-')
	if !r.take('0') {
		r.digits()
	}
	if r.take('.') {
		r.digits()
	}
	if r.take('e') || r.take('E') {
		if !r.take('+') {
			r.take('-')
		}
		r.digits()
	}
}

// digits passes over one at least.
func (r *reader) digits() {
	begin := r.at
	for c := r.next(); c >= '0' && c <= '9'; c = r.next() {
		r.at++
	}
	if r.at == begin {
		r.bad = true
	}
}
