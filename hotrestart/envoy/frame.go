package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	// envoyFrameHeader is the length that a message begins with, big-endian.
	envoyFrameHeader = 8
	// envoyDatagram is how much Envoy sends, and expects, at a time.
	envoyDatagram = 4096
	// maxEnvoyMessage bounds a reply: 16 MiB of statistics are some 150,000 of them.
	maxEnvoyMessage = 16 << 20
	// maxEnvoySkipped bounds what is read and thrown away of a longer one. A length above it
	// can only be garbage, which has no end to wait for.
	maxEnvoySkipped = 1 << 30
)

var (
	// errMisaligned says that a datagram does not continue the message before it.
	errMisaligned = errors.New("a datagram is not aligned with the message")
	// errEnvoyTooLong says that a message was longer than maxEnvoyMessage and was thrown away.
	errEnvoyTooLong = fmt.Errorf("a message is longer than %d bytes", maxEnvoyMessage)
)

// appendEnvoyFrame gives a message the form in which it is sent, envoyDatagram bytes at a time.
func appendEnvoyFrame(message []byte) []byte {
	frame := make([]byte, envoyFrameHeader, envoyFrameHeader+len(message))
	binary.BigEndian.PutUint64(frame, uint64(len(message)))
	return append(frame, message...)
}

// envoyAssembler puts a message together of the datagrams that carry it. The zero value
// waits for the first one. It holds no more than what it was given.
type envoyAssembler struct {
	message []byte
	want    uint64 // bytes of the message that are still to come
	skip    bool   // the message is too long to keep
	inside  bool   // in the middle of a message
}

// add takes the next datagram. done is true when it completes a message, good or bad: the
// message is of no use when err is set, and the next datagram begins another one.
func (a *envoyAssembler) add(datagram []byte) (message []byte, done bool, err error) {
	if !a.inside {
		if len(datagram) < envoyFrameHeader {
			return nil, true, errMisaligned
		}
		a.want = binary.BigEndian.Uint64(datagram)
		datagram = datagram[envoyFrameHeader:]
		if a.want > maxEnvoySkipped {
			return nil, true, errEnvoyTooLong
		}
		a.inside, a.skip = true, a.want > maxEnvoyMessage
	}
	if uint64(len(datagram)) > a.want {
		*a = envoyAssembler{}
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
	*a = envoyAssembler{}
	if skipped {
		return nil, true, errEnvoyTooLong
	}
	return message, true, nil
}

// singleEnvoyFrame returns the message of a datagram that holds a whole one, as every request
// does: the longest is an address.
func singleEnvoyFrame(datagram []byte) ([]byte, error) {
	if len(datagram) < envoyFrameHeader || binary.BigEndian.Uint64(datagram) != uint64(len(datagram)-envoyFrameHeader) {
		return nil, errMisaligned
	}
	return datagram[envoyFrameHeader:], nil
}
