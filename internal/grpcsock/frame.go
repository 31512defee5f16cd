package grpcsock

import (
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// Frame is a message that is passed on as it came, once.
type Frame struct{ bytes mem.BufferSlice }

// Codec is that of a Server, for a client that passes on its frames.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(protocodec.Name)} }

// Unmarshal implements [encoding.CodecV2].
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*Frame); ok {
		data.Ref() // Marshal's caller lets go of it
		f.bytes = data
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
