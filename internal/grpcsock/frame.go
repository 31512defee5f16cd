package grpcsock

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Frame is a message that is passed on as it came, once.
type Frame struct{ bytes mem.BufferSlice }

// NewFrame is a message of these pieces, which do not change any more.
func NewFrame(pieces ...[]byte) *Frame {
	f := &Frame{bytes: make(mem.BufferSlice, len(pieces))}
	for i, b := range pieces {
		f.bytes[i] = mem.SliceBuffer(b)
	}
	return f
}

// Incoming is a message that reads itself out of the buffers that it has come in, which are others' afterwards.
type Incoming interface {
	ReadMessage(from *mem.Reader) error
}

// Codec is that of a Server, for a client that passes on its frames or has an Incoming.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protocodec.Name)} }

// Unmarshal implements [encoding.CodecV2].
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *Frame:
		data.Ref() // Marshal's caller lets go of it
		m.bytes = data
		return nil
	case Incoming:
		from := data.Reader()
		defer from.Close()
		return m.ReadMessage(from)
	}
	return c.CodecV2.Unmarshal(data, v)
}
