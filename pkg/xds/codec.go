package xds

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is gRPC's protobuf codec, but for messages that can marshal themselves (build
// tag vtprotobuf), which needs no reflection.
type codec struct{}

var _ encoding.CodecV2 = codec{}

// Name is that of gRPC's own codec: on the wire there is no difference.
func (codec) Name() string { return protocodec.Name }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if vt, ok := v.(interface{ MarshalVTStrict() ([]byte, error) }); ok {
		b, err := vt.MarshalVTStrict()
		if err != nil {
			return nil, fmt.Errorf("marshal %T: %w", v, err)
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	return encoding.GetCodecV2(protocodec.Name).Marshal(v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal into %T: want a protobuf message", v)
	}
	return proto.Unmarshal(data.Materialize(), m)
}
