// Package records owns the form in which resources travel from one generation to the next: records, each a message in the wire format of
// protobuf behind its length (a varint), so that a release that knows more can add fields. A record names a type, or is of the type that was
// named last: a resource, or a name of which the upstream says that there is none.
package records

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/xds/internal/canonical"
)

// The fields of a record.
const (
	fieldType   protowire.Number = 1
	fieldName   protowire.Number = 2
	fieldBody   protowire.Number = 3
	fieldAbsent protowire.Number = 4
)

const (
	// maxRecord bounds a record that is read. A resource comes in a response, which has a bound of its own below.
	maxRecord = 256 << 20
	// bufferSize is how much is written at once.
	bufferSize = 64 << 10
)

// Writer writes records. It is made by NewWriter; Flush has the first error of all.
type Writer struct {
	to   *bufio.Writer
	at   int64  // what was written
	head []byte // of a record
}

// NewWriter returns a writer, which owns to up to Flush.
func NewWriter(to io.Writer) *Writer { return &Writer{to: bufio.NewWriterSize(to, bufferSize)} }

// Type begins the resources of a type.
func (w *Writer) Type(url string) { w.text(fieldType, url) }

// Resource adds one of the type, and returns where its body begins in all that was written.
func (w *Writer) Resource(name string, body []byte) (at int64) {
	w.head = protowire.AppendString(protowire.AppendTag(w.head[:0], fieldName, protowire.BytesType), name)
	w.head = protowire.AppendVarint(protowire.AppendTag(w.head, fieldBody, protowire.BytesType), uint64(len(body)))
	w.record(body)
	return w.at - int64(len(body))
}

// Absent adds a name of the type of which there is no resource.
func (w *Writer) Absent(name string) { w.text(fieldAbsent, name) }

// Flush ends the writing, and returns its first error.
func (w *Writer) Flush() error { return w.to.Flush() }

func (w *Writer) text(number protowire.Number, value string) {
	w.head = protowire.AppendString(protowire.AppendTag(w.head[:0], number, protowire.BytesType), value)
	w.record(nil)
}

// record writes one, which is the head and a body.
func (w *Writer) record(body []byte) {
	var size [binary.MaxVarintLen64]byte
	for _, b := range [][]byte{binary.AppendUvarint(size[:0], uint64(len(w.head)+len(body))), w.head, body} {
		n, _ := w.to.Write(b) // Flush has the error
		w.at += int64(n)
	}
}

// Record is one that was read.
type Record struct {
	// Type is the URL of the resource's, or that which is named; never "".
	Type string
	// Name is the resource's; "": the record names a type.
	Name string
	// Body is the resource's, valid until the next record.
	Body []byte
	// Absent says that there is no resource with this name.
	Absent bool
}

// errRecord says that a record is not what it ought to be.
var errRecord = errors.New("a record that is none")

// Read reads records up to the end, or to the first error, which comes alone.
func Read(from io.Reader) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		r := reader{from: bufio.NewReader(from)}
		for {
			switch record, err := r.next(); {
			case errors.Is(err, io.EOF):
				return
			case err == nil && record.Type == "": // of another release
			case !yield(record, err) || err != nil:
				return
			}
		}
	}
}

type reader struct {
	from *bufio.Reader
	buf  bytes.Buffer // holds a record
	url  string       // of the type that was named last; "": none was
}

// next fails with io.EOF where there is no further one. Of one of another release, in which nothing is known here, it returns nothing.
func (r *reader) next() (Record, error) {
	size, err := binary.ReadUvarint(r.from)
	if err != nil {
		return Record{}, err // io.EOF only before the first byte
	}
	if size > maxRecord {
		return Record{}, fmt.Errorf("%w: of %d bytes, at most %d", errRecord, size, maxRecord)
	}
	r.buf.Reset()
	if n, err := r.buf.ReadFrom(io.LimitReader(r.from, int64(size))); err != nil { // what is not there is not allocated for
		return Record{}, err
	} else if uint64(n) < size {
		return Record{}, io.ErrUnexpectedEOF
	}
	return r.parse(r.buf.Bytes())
}

func (r *reader) parse(b []byte) (Record, error) {
	var url, name, body, absent []byte // nil: there is none
	for len(b) > 0 {
		f := canonical.First(b)
		if len(f.Whole) == 0 {
			return Record{}, fmt.Errorf("%w: a field is cut off", errRecord)
		}
		switch f.Number {
		case fieldType:
			url = f.Value
		case fieldName:
			name = f.Value
		case fieldBody:
			body = f.Value
		case fieldAbsent:
			absent = f.Value
		}
		b = b[len(f.Whole):]
	}
	if url != nil {
		r.url = string(url)
	}
	switch {
	case url == nil && name == nil && absent == nil:
		return Record{}, nil
	case r.url == "":
		return Record{}, fmt.Errorf("%w: a resource of no type", errRecord)
	case url != nil:
		return Record{Type: r.url}, nil
	case absent != nil:
		return Record{Type: r.url, Name: string(absent), Absent: true}, nil
	case len(name) == 0:
		return Record{}, fmt.Errorf("%w: a resource without a name", errRecord)
	}
	return Record{Type: r.url, Name: string(name), Body: body}, nil
}
