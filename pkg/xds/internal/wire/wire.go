// Package wire owns the form in which resources are in responses of xDS, as fields on the wire.
package wire

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/xds/internal/canonical"
)

// Fields of a DeltaDiscoveryResponse.
const (
	SystemVersion protowire.Number = 1
	Resources     protowire.Number = 2
	Type          protowire.Number = 4
	Nonce         protowire.Number = 5
	Removed       protowire.Number = 6
)

// Fields of a Resource in it, and of the Any in that.
const (
	fieldVersion protowire.Number = 1
	fieldAny     protowire.Number = 2
	fieldName    protowire.Number = 3

	fieldAnyType  protowire.Number = 1
	fieldAnyValue protowire.Number = 2
)

const (
	// versionDigits is how many a version has.
	versionDigits = 16
	// VersionSize is what the version of a resource takes.
	VersionSize = 2 + versionDigits
)

// ErrResponse says that a message is none that the protocol has.
var ErrResponse = errors.New("no response of xDS")

// Resource is what there is of a resource in a response.
type Resource struct {
	Name, URL, Body []byte
	More            bool // there is something else, or one of these twice
}

// ParseResource reads a resource, and copies nothing. Its error is ErrResponse.
func ParseResource(b []byte) (f Resource, err error) {
	var content []byte
	err = eachField(b, func(number protowire.Number, value []byte) {
		switch {
		case number == fieldName && f.Name == nil:
			f.Name = value
		case number == fieldAny && content == nil:
			content = value
		case number != fieldVersion:
			f.More = true
		}
	})
	if err != nil {
		return f, err
	}
	err = eachField(content, func(number protowire.Number, value []byte) {
		switch {
		case number == fieldAnyType && f.URL == nil:
			f.URL = value
		case number == fieldAnyValue && f.Body == nil:
			f.Body = value
		default:
			f.More = true
		}
	})
	if err == nil && !(utf8.Valid(f.Name) && utf8.Valid(f.URL)) {
		err = fmt.Errorf("%w: a string that is not UTF-8", ErrResponse)
	}
	return f, err
}

// eachField passes each field of a message to visit: the value of one that has bytes, nil for another.
func eachField(b []byte, visit func(number protowire.Number, value []byte)) error {
	for len(b) > 0 {
		f := canonical.First(b)
		if len(f.Whole) == 0 {
			return fmt.Errorf("%w: a resource that is no message", ErrResponse)
		}
		visit(f.Number, f.Value)
		b = b[len(f.Whole):]
	}
	return nil
}

// encodedSize is how many bytes a resource has in a response, without its own tag and length.
func encodedSize(url, name string, body int) int {
	return protowire.SizeTag(fieldName) + protowire.SizeBytes(len(name)) + protowire.SizeTag(fieldAny) + protowire.SizeBytes(anySize(url, body)) + VersionSize
}

func anySize(url string, body int) int {
	return protowire.SizeTag(fieldAnyType) + protowire.SizeBytes(len(url)) + protowire.SizeTag(fieldAnyValue) + protowire.SizeBytes(body)
}

// SizeOf is how many bytes AppendResource appends.
func SizeOf(url, name string, body int) int {
	return protowire.SizeTag(Resources) + protowire.SizeBytes(encodedSize(url, name, body))
}

// AppendResource appends a resource as a response to Envoy has it.
func AppendResource(b []byte, url, name string, body []byte, version uint64) []byte {
	b = protowire.AppendTag(b, Resources, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(encodedSize(url, name, len(body))))
	b = AppendField(b, fieldName, name)
	b = protowire.AppendTag(b, fieldAny, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(anySize(url, len(body))))
	b = AppendField(AppendField(b, fieldAnyType, url), fieldAnyValue, body)
	return AppendVersion(b, version)
}

// AppendVersion appends the version of a resource, which may be its last field.
func AppendVersion(b []byte, version uint64) []byte {
	b = protowire.AppendVarint(protowire.AppendTag(b, fieldVersion, protowire.BytesType), versionDigits)
	return appendVersionText(b, version)
}

// AppendField appends a field that has bytes.
func AppendField[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(value))), value...)
}

// VersionText and ParseVersion are the two directions of a version on the wire, which to Envoy is opaque. What is not of our making is
// 0: unknown.
func VersionText(v uint64) string { return string(appendVersionText(nil, v)) }

func appendVersionText(b []byte, v uint64) []byte {
	return hex.AppendEncode(b, binary.BigEndian.AppendUint64(make([]byte, 0, versionDigits/2), v))
}

// ParseVersion is the opposite of VersionText.
func ParseVersion(s string) uint64 {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0
	}
	return v
}
