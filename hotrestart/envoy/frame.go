package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// frameHeader is the length that a message begins with, big-endian.
	frameHeader = 8
	// datagramSize is how much Envoy sends, and expects, at a time.
	datagramSize = 4096
	// maxMessage bounds a reply: 16 MiB of statistics are some 150,000 of them.
	maxMessage = 16 << 20
	// maxSkipped bounds what is read and thrown away of a longer one. A length above it
	// can only be garbage, which has no end to wait for.
	maxSkipped = 1 << 30
)

var (
	// errMisaligned says that a datagram does not continue the message before it.
	errMisaligned = errors.New("a datagram is not aligned with the message")
	// errTooLong says that a message was longer than maxMessage and was thrown away.
	errTooLong = fmt.Errorf("a message is longer than %d bytes", maxMessage)
)

// appendFrame gives a message the form in which it is sent, datagramSize bytes at a time.
func appendFrame(message []byte) []byte {
	frame := make([]byte, frameHeader, frameHeader+len(message))
	binary.BigEndian.PutUint64(frame, uint64(len(message)))
	return append(frame, message...)
}

// assembler puts a message together of the datagrams that carry it. The zero value
// waits for the first one. It holds no more than what it was given.
type assembler struct {
	message []byte
	want    uint64 // bytes of the message that are still to come
	skip    bool   // the message is too long to keep
	inside  bool   // in the middle of a message
}

// add takes the next datagram. done is true when it completes a message, good or bad: the
// message is of no use when err is set, and the next datagram begins another one.
func (a *assembler) add(datagram []byte) (message []byte, done bool, err error) {
	if !a.inside {
		if len(datagram) < frameHeader {
			return nil, true, errMisaligned
		}
		a.want = binary.BigEndian.Uint64(datagram)
		datagram = datagram[frameHeader:]
		if a.want > maxSkipped {
			return nil, true, errTooLong
		}
		a.inside, a.skip = true, a.want > maxMessage
	}
	if uint64(len(datagram)) > a.want {
		*a = assembler{}
		return nil, true, errMisaligned
	}
	a.want -= uint64(len(datagram))
	if !a.skip {
		a.message = append(a.message, datagram...)
	}
	if a.want > 0 {
		return nil, false, nil
	}
	message, skipped := a.message, a.skip
	*a = assembler{}
	if skipped {
		return nil, true, errTooLong
	}
	return message, true, nil
}

// singleFrame returns the message of a datagram that holds a whole one, as every request
// does: the longest is an address.
func singleFrame(datagram []byte) ([]byte, error) {
	if len(datagram) < frameHeader || binary.BigEndian.Uint64(datagram) != uint64(len(datagram)-frameHeader) {
		return nil, errMisaligned
	}
	return datagram[frameHeader:], nil
}
