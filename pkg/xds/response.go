package xds

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/xds/internal/wire"
)

// Response is one response of the upstream, of increments (a DeltaDiscoveryResponse).
type Response struct {
	Type, Nonce string
	Resources   []Resource
	Removed     []string // names
	foreign     error    // see Foreign
}

var _ grpcsock.Incoming = (*Response)(nil)

// maxChunk is how much of a response lies in one piece of memory, which is free once none of its resources is needed.
const maxChunk = 1 << 20

// Foreign says which resource is of another type than the response; nil: none is.
func (resp *Response) Foreign() error { return resp.foreign }

// Add adds a resource of a type.
func (resp *Response) Add(url string, m Resource) {
	resp.want(url, m.Name)
	resp.Resources = append(resp.Resources, m)
}

// want takes in the type of a resource.
func (resp *Response) want(url, name string) {
	if url != resp.Type && resp.foreign == nil {
		resp.foreign = fmt.Errorf("resource %q is of type %q: want a body of type %q", name, url, resp.Type)
	}
}

// ReadMessage reads a response, and copies of it what is to be kept, once. Each resource lies there as Envoy is sent it: as it came, with
// a version of ours behind it, which counts for being the last one.
func (resp *Response) ReadMessage(r *mem.Reader) error {
	in := responseReader{r: r}
	for r.Remaining() > 0 {
		number, size, err := in.field()
		if err != nil {
			return err
		}
		text := ""
		switch number {
		case wire.Resources:
			var m Resource
			if m, err = in.resource(size); err == nil {
				if resp.Resources == nil { // those of one type are about the same size
					resp.Resources = make([]Resource, 0, 1+r.Remaining()/max(size, 1))
				}
				resp.Resources = append(resp.Resources, m)
			}
		case wire.Type:
			resp.Type, err = in.text(size)
		case wire.Nonce:
			resp.Nonce, err = in.text(size)
		case wire.Removed:
			text, err = in.text(size)
			resp.Removed = append(resp.Removed, text)
		default:
			err = in.skip(size)
		}
		if err != nil {
			return err
		}
	}
	for _, t := range in.types { // the response's own comes behind its resources
		resp.want(t.url, t.name)
	}
	return nil
}

// responseReader reads one response.
type responseReader struct {
	r     *mem.Reader
	chunk []byte // has room at its end
	types []typed
}

// typed is the type of a resource, and of those that follow on it up to the next one.
type typed struct{ url, name string }

// field reads the number of the next field that has bytes, and how many. It skips others.
func (in *responseReader) field() (protowire.Number, int, error) {
	for in.r.Remaining() > 0 {
		tag, err := binary.ReadUvarint(in.r)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: %w", wire.ErrResponse, err)
		}
		number, kind := protowire.DecodeTag(tag)
		if number < protowire.MinValidNumber {
			return 0, 0, fmt.Errorf("%w: field %d", wire.ErrResponse, number)
		}
		switch kind {
		case protowire.BytesType:
			size, err := binary.ReadUvarint(in.r)
			if err != nil || size > uint64(in.r.Remaining()) {
				return 0, 0, fmt.Errorf("%w: field %d: %w", wire.ErrResponse, number, io.ErrUnexpectedEOF)
			}
			return number, int(size), nil
		case protowire.VarintType:
			_, err = binary.ReadUvarint(in.r)
		case protowire.Fixed32Type:
			err = in.skip(4)
		case protowire.Fixed64Type:
			err = in.skip(8)
		default: // nobody has used groups since 2008
			err = fmt.Errorf("wire type %d", kind)
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%w: field %d: %w", wire.ErrResponse, number, err)
		}
	}
	return fieldSkipped, 0, nil
}

// fieldSkipped is none of a response, for the end of one whose last fields have no bytes.
const fieldSkipped = protowire.MaxValidNumber

func (in *responseReader) skip(size int) error {
	if _, err := in.r.Discard(size); err != nil {
		return fmt.Errorf("%w: %w", wire.ErrResponse, io.ErrUnexpectedEOF)
	}
	return nil
}

func (in *responseReader) text(size int) (string, error) {
	b := make([]byte, size)
	_, _ = in.r.Read(b) // there are as many
	if !utf8.Valid(b) {
		return "", fmt.Errorf("%w: a string that is not UTF-8", wire.ErrResponse)
	}
	return string(b), nil
}

// resource reads a resource of so many bytes.
func (in *responseReader) resource(size int) (Resource, error) {
	need := 1 + protowire.SizeBytes(size+wire.VersionSize)
	if cap(in.chunk)-len(in.chunk) < need {
		rest := in.r.Remaining() - size // and the versions, of which there is one for more than a hundred bytes
		in.chunk = make([]byte, 0, max(need, min(maxChunk, need+rest+rest/8)))
	}
	begin := len(in.chunk)
	b := protowire.AppendTag(in.chunk, wire.Resources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size+wire.VersionSize))
	message := b[len(b) : len(b)+size]
	_, _ = in.r.Read(message) // there are as many
	f, err := wire.ParseResource(message)
	if err != nil {
		return Resource{}, err
	}
	m := NewResource(string(f.Name), f.Body)
	if len(in.types) == 0 || in.types[len(in.types)-1].url != string(f.URL) {
		in.types = append(in.types, typed{string(f.URL), m.Name})
	}
	if f.More { // which Envoy is not sent: the relay knows nothing of it
		m.raw = encode(string(f.URL), m)
		return m, nil
	}
	b = wire.AppendVersion(b[:len(b)+size], m.version)
	in.chunk = b
	m.raw = b[begin:]
	m.at = uint32(cap(m.raw) - cap(f.Body)) // both end where the chunk does
	return m, nil
}

// encode is a resource as a response to Envoy has it.
func encode(url string, m Resource) []byte {
	return wire.AppendResource(make([]byte, 0, wire.SizeOf(url, m.Name, len(m.Body))), url, m.Name, m.Body, m.version)
}
