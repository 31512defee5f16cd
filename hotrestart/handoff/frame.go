package handoff

import (
	"encoding/binary"
	"fmt"
)

// The frame of the hand-off protocol. Its layout never changes, in no version: this is
// what two agents of any age can always read of one another.
//
//	0   4  magic "USHO"
//	4   1  protocol version that the sender speaks; a greeting has its lowest
//	5   1  message type
//	6   1  number of descriptors that ride on this frame (SCM_RIGHTS, unix(7))
//	7   1  zero
//	8   4  length of the head, big endian
//	12  4  length of the body, big endian
//	16     head: a JSON object; body: bytes as they are
//
// The head is JSON because it describes itself: fields that a reader does not know are
// skipped, a transcript can be read by people, and nothing has to be generated or
// linked for it. What is large (State) is the body, which JSON would blow up by a third.
const (
	frameMagic      = "USHO"
	frameHeaderSize = 16
	// maxPayload is the largest head and body together. It is part of the protocol: an
	// agent cannot know how much an older one takes.
	maxPayload = 64 << 10
	// maxFrameSockets is the number of descriptors a frame may carry; the kernel takes
	// 253 in one message (SCM_MAX_FD), and half-full frames are no loss here.
	maxFrameSockets = 64
)

// frame is one message as it travels. It owns fds until somebody takes them.
type frame struct {
	version uint8
	kind    messageKind
	head    []byte
	body    []byte
	fds     []int
}

// frameHeader is what the first 16 bytes say.
type frameHeader struct {
	version    uint8
	kind       messageKind
	sockets    int
	head, body int
}

// parseFrameHeader reads and bounds a header; what it lets through is safe to allocate.
func parseFrameHeader(b [frameHeaderSize]byte) (frameHeader, error) {
	if string(b[:4]) != frameMagic {
		return frameHeader{}, fmt.Errorf("read frame: it begins with % x, not with %q: the peer is no agent of ours", b[:4], frameMagic)
	}
	head, body := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	switch {
	case b[4] == 0:
		return frameHeader{}, fmt.Errorf("read frame: protocol version 0")
	case b[6] > maxFrameSockets:
		return frameHeader{}, fmt.Errorf("read frame: %d descriptors, at most %d", b[6], maxFrameSockets)
	case uint64(head)+uint64(body) > maxPayload:
		return frameHeader{}, fmt.Errorf("read frame: %d bytes, at most %d", uint64(head)+uint64(body), maxPayload)
	}
	return frameHeader{b[4], messageKind(b[5]), int(b[6]), int(head), int(body)}, nil
}

// appendFrame encodes f without its descriptors, which travel beside it.
func appendFrame(b []byte, f frame) ([]byte, error) {
	if len(f.head)+len(f.body) > maxPayload {
		return nil, fmt.Errorf("write %s: %d bytes, at most %d", f.kind, len(f.head)+len(f.body), maxPayload)
	}
	if len(f.fds) > maxFrameSockets {
		return nil, fmt.Errorf("write %s: %d descriptors, at most %d", f.kind, len(f.fds), maxFrameSockets)
	}
	b = append(b, frameMagic...)
	b = append(b, f.version, byte(f.kind), byte(len(f.fds)), 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.head)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.body)))
	b = append(b, f.head...)
	return append(b, f.body...), nil
}
