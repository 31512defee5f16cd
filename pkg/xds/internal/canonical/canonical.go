// Package canonical owns what two messages have to have in common to mean the same: their bytes, but for the order of maps. It reads them as
// fields on the wire.
package canonical

import (
	"bytes"
	"iter"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// maxDepth is how far messages within messages are looked into: what istiod sends does not come near it.
const maxDepth = 100

// Same says whether two resources of a type mean the same to Envoy. Their bytes may differ: istiod writes the entries of a map,
// such as the metadata of a cluster, in any order.
func Same(url string, a, b []byte) bool {
	return len(a) == len(b) && (bytes.Equal(a, b) || sameMessage(typeOf(url), a, b, maxDepth))
}

// sameMessage compares two messages field by field, and looks only into fields whose bytes differ. Messages of no known kind, and
// what is no message, differ.
func sameMessage(kind protoreflect.MessageDescriptor, a, b []byte, depth int) bool {
	if kind == nil || depth == 0 {
		return false
	}
	whole := a
	for len(a) > 0 && len(b) > 0 {
		one, two := First(a), First(b)
		if len(one.Whole) == 0 || len(two.Whole) == 0 {
			return false
		}
		if !bytes.Equal(one.Whole, two.Whole) {
			field := kind.Fields().ByNumber(one.Number)
			switch {
			case field == nil || one.Number != two.Number || one.Value == nil || two.Value == nil:
				return false
			case field.IsMap():
				var ones, twos [][]byte
				ones, one.Whole = entries(a, one.Number)
				twos, two.Whole = entries(b, one.Number)
				if !sameEntries(field.Message(), ones, twos, depth) {
					return false
				}
			case !sameMessage(inside(kind, field, whole), one.Value, two.Value, depth-1):
				return false
			}
		}
		a, b = a[len(one.Whole):], b[len(two.Whole):]
	}
	return len(a) == len(b)
}

// sameEntries compares the entries of two maps, which may have any order.
func sameEntries(kind protoreflect.MessageDescriptor, a, b [][]byte, depth int) bool {
	byKey := func(x, y []byte) int { return bytes.Compare(First(x).Whole, First(y).Whole) }
	slices.SortStableFunc(a, byKey)
	slices.SortStableFunc(b, byKey)
	return slices.EqualFunc(a, b, func(x, y []byte) bool { return bytes.Equal(x, y) || sameMessage(kind, x, y, depth-1) })
}

// Field is one field of a message on the wire.
type Field struct {
	Number       protowire.Number
	Whole, Value []byte // with its tag, and, of one that has bytes, without
}

// First is the first one of a message; it is empty where there is none.
func First(b []byte) (f Field) {
	number, wire, head := protowire.ConsumeTag(b)
	if head < 0 {
		return Field{}
	}
	size := protowire.ConsumeFieldValue(number, wire, b[head:])
	if size < 0 {
		return Field{}
	}
	f = Field{Number: number, Whole: b[:head+size]}
	if wire == protowire.BytesType {
		f.Value, _ = protowire.ConsumeBytes(f.Whole[head:])
	}
	return f
}

// Fields are those of a message, up to where it is none.
func Fields(b []byte) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for f := First(b); len(f.Whole) > 0 && yield(f); f = First(b) {
			b = b[len(f.Whole):]
		}
	}
}

// entries are those of a map that a message begins with, and all of their bytes in it.
func entries(b []byte, number protowire.Number) (all [][]byte, whole []byte) {
	rest := b
	for f := First(rest); f.Number == number && f.Value != nil; f = First(rest) {
		all = append(all, f.Value)
		rest = rest[len(f.Whole):]
	}
	return all, b[:len(b)-len(rest)]
}

// An Any names the type of the bytes in it.
const (
	anyName protoreflect.FullName = "google.protobuf.Any"
	anyType protowire.Number      = 1
)

// inside is the kind of message that is in a field of a message; nil: none, or none that is known.
func inside(kind protoreflect.MessageDescriptor, field protoreflect.FieldDescriptor, message []byte) protoreflect.MessageDescriptor {
	if kind.FullName() != anyName || field.Number() == anyType {
		return field.Message()
	}
	url, _ := Last(message, anyType)
	return typeOf(string(url))
}

// typeOf is nil for a type that this program does not know.
func typeOf(url string) protoreflect.MessageDescriptor {
	kind, err := protoregistry.GlobalTypes.FindMessageByURL(url)
	if err != nil {
		return nil
	}
	return kind.Descriptor()
}

// Last is the value of a field that has bytes, of which the last one counts. What is no message has none.
func Last(b []byte, wanted protowire.Number) (value []byte, has bool) {
	for len(b) > 0 {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, false
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(number, kind, b); size < 0 {
			return nil, false
		}
		if number == wanted && kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(b)
			has = true
		}
		b = b[size:]
	}
	return value, has
}
