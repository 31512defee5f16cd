package xds

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/xds/internal/canonical"
)

// Response is one response of the upstream, of increments (a DeltaDiscoveryResponse).
type Response struct {
	Type, Nonce string
	Resources   []Resource
	Removed     []string // names
	foreign     error    // see Foreign
}

var _ grpcsock.Incoming = (*Response)(nil)

// Fields of a DeltaDiscoveryResponse, of a Resource in it, and of the Any in that.
const (
	fieldSystemVersion protowire.Number = 1
	fieldResources     protowire.Number = 2
	fieldType          protowire.Number = 4
	fieldNonce         protowire.Number = 5
	fieldRemoved       protowire.Number = 6

	fieldVersion protowire.Number = 1
	fieldAny     protowire.Number = 2
	fieldName    protowire.Number = 3

	fieldAnyType  protowire.Number = 1
	fieldAnyValue protowire.Number = 2
)

const (
	// maxChunk is how much of a response lies in one piece of memory, which is free once none of its resources is needed.
	maxChunk = 1 << 20
	// versionSize is what the version of a resource takes on the wire.
	versionSize = 2 + versionDigits
)

// errResponse says that a message is none that the protocol has.
var errResponse = errors.New("no response of xDS")

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
		case fieldResources:
			var m Resource
			if m, err = in.resource(size); err == nil {
				if resp.Resources == nil { // those of one type are about the same size
					resp.Resources = make([]Resource, 0, 1+r.Remaining()/max(size, 1))
				}
				resp.Resources = append(resp.Resources, m)
			}
		case fieldType:
			resp.Type, err = in.text(size)
		case fieldNonce:
			resp.Nonce, err = in.text(size)
		case fieldRemoved:
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
			return 0, 0, fmt.Errorf("%w: %w", errResponse, err)
		}
		number, kind := protowire.DecodeTag(tag)
		if number < protowire.MinValidNumber {
			return 0, 0, fmt.Errorf("%w: field %d", errResponse, number)
		}
		switch kind {
		case protowire.BytesType:
			size, err := binary.ReadUvarint(in.r)
			if err != nil || size > uint64(in.r.Remaining()) {
				return 0, 0, fmt.Errorf("%w: field %d: %w", errResponse, number, io.ErrUnexpectedEOF)
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
			return 0, 0, fmt.Errorf("%w: field %d: %w", errResponse, number, err)
		}
	}
	return fieldSkipped, 0, nil
}

// fieldSkipped is none of a response, for the end of one whose last fields have no bytes.
const fieldSkipped = protowire.MaxValidNumber

func (in *responseReader) skip(size int) error {
	if _, err := in.r.Discard(size); err != nil {
		return fmt.Errorf("%w: %w", errResponse, io.ErrUnexpectedEOF)
	}
	return nil
}

func (in *responseReader) text(size int) (string, error) {
	b := make([]byte, size)
	_, _ = in.r.Read(b) // there are as many
	if !utf8.Valid(b) {
		return "", fmt.Errorf("%w: a string that is not UTF-8", errResponse)
	}
	return string(b), nil
}

// resource reads a resource of so many bytes.
func (in *responseReader) resource(size int) (Resource, error) {
	need := 1 + protowire.SizeBytes(size+versionSize)
	if cap(in.chunk)-len(in.chunk) < need {
		rest := in.r.Remaining() - size // and the versions, of which there is one for more than a hundred bytes
		in.chunk = make([]byte, 0, max(need, min(maxChunk, need+rest+rest/8)))
	}
	begin := len(in.chunk)
	b := protowire.AppendTag(in.chunk, fieldResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size+versionSize))
	message := b[len(b) : len(b)+size]
	_, _ = in.r.Read(message) // there are as many
	f, err := parseResource(message)
	if err != nil {
		return Resource{}, err
	}
	m := NewResource(string(f.name), f.body)
	if len(in.types) == 0 || in.types[len(in.types)-1].url != string(f.url) {
		in.types = append(in.types, typed{string(f.url), m.Name})
	}
	if f.more { // which Envoy is not sent: the relay knows nothing of it
		m.raw = encode(string(f.url), m)
		return m, nil
	}
	b = appendVersion(b[:len(b)+size], m.version)
	in.chunk = b
	m.raw = b[begin:]
	m.at = uint32(cap(m.raw) - cap(f.body)) // both end where the chunk does
	return m, nil
}

// resourceFields is what there is of a resource in a response.
type resourceFields struct {
	name, url, body []byte
	more            bool // there is something else, or one of these twice
}

func parseResource(b []byte) (f resourceFields, err error) {
	var content []byte
	err = eachField(b, func(number protowire.Number, value []byte) {
		switch {
		case number == fieldName && f.name == nil:
			f.name = value
		case number == fieldAny && content == nil:
			content = value
		case number != fieldVersion:
			f.more = true
		}
	})
	if err != nil {
		return f, err
	}
	err = eachField(content, func(number protowire.Number, value []byte) {
		switch {
		case number == fieldAnyType && f.url == nil:
			f.url = value
		case number == fieldAnyValue && f.body == nil:
			f.body = value
		default:
			f.more = true
		}
	})
	if err == nil && !(utf8.Valid(f.name) && utf8.Valid(f.url)) {
		err = fmt.Errorf("%w: a string that is not UTF-8", errResponse)
	}
	return f, err
}

// eachField passes each field of a message to visit: the value of one that has bytes, nil for another.
func eachField(b []byte, visit func(number protowire.Number, value []byte)) error {
	for len(b) > 0 {
		f := canonical.First(b)
		if len(f.Whole) == 0 {
			return fmt.Errorf("%w: a resource that is no message", errResponse)
		}
		visit(f.Number, f.Value)
		b = b[len(f.Whole):]
	}
	return nil
}

// encode is a resource as a response to Envoy has it.
func encode(url string, m Resource) []byte {
	content := protowire.SizeTag(fieldAnyType) + protowire.SizeBytes(len(url)) + protowire.SizeTag(fieldAnyValue) + protowire.SizeBytes(len(m.Body))
	size := protowire.SizeTag(fieldName) + protowire.SizeBytes(len(m.Name)) + protowire.SizeTag(fieldAny) + protowire.SizeBytes(content) + versionSize
	b := make([]byte, 0, protowire.SizeTag(fieldResources)+protowire.SizeBytes(size))
	b = protowire.AppendTag(b, fieldResources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = appendField(b, fieldName, m.Name)
	b = protowire.AppendTag(b, fieldAny, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(content))
	b = appendField(appendField(b, fieldAnyType, url), fieldAnyValue, m.Body)
	return appendVersion(b, m.version)
}

func appendVersion(b []byte, version uint64) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, fieldVersion, protowire.BytesType), versionDigits)
	return appendVersionText(b, version)
}

func appendField[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(value))), value...)
}
