package grpcsock

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// marshaler is a message that can marshal itself (build tag vtprotobuf), which needs no reflection.
type marshaler interface{ MarshalVTStrict() ([]byte, error) }

// Marshal gives a message as bytes, without reflection if it can.
func Marshal(m proto.Message) ([]byte, error) {
	if vt, ok := m.(marshaler); ok {
		return vt.MarshalVTStrict()
	}
	return proto.Marshal(m)
}

// codec is gRPC's protobuf codec, but for messages that can marshal themselves, and frames.
type codec struct{ encoding.CodecV2 }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*Frame); ok {
		return f.bytes, nil
	}
	if vt, ok := v.(marshaler); ok {
		b, err := vt.MarshalVTStrict()
		if err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return c.CodecV2.Marshal(v)
}
