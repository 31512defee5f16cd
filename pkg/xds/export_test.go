package xds

import (
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Read is what a relay gets of a response, which comes in pieces.
func Read(resp *discoveryv3.DeltaDiscoveryResponse) (*Response, error) {
	b, err := proto.Marshal(resp)
	if err != nil {
		return nil, err
	}
	return readPieces(b, 13)
}

func readPieces(b []byte, size int) (*Response, error) {
	var pieces mem.BufferSlice
	for len(b) > 0 {
		n := min(size, len(b))
		pieces = append(pieces, mem.SliceBuffer(b[:n:n]))
		b = b[n:]
	}
	r := pieces.Reader()
	defer r.Close()
	resp := new(Response)
	return resp, resp.ReadMessage(r)
}
