package xds

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// codec is gRPC's protobuf codec, but for messages that can marshal themselves (build
// tag vtprotobuf), which needs no reflection.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if vt, ok := v.(interface{ MarshalVTStrict() ([]byte, error) }); ok {
		b, err := vt.MarshalVTStrict()
		if err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}
