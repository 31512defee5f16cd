package xds

import (
	"bytes"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// maxDepth is how far messages within messages are looked into: what istiod sends does not come near it.
const maxDepth = 100

// same says whether two resources of a type mean the same to Envoy. Their bytes may differ: istiod writes the entries of a map,
// such as the metadata of a cluster, in any order.
func same(url string, a, b Resource) bool {
	if a.version == b.version {
		return true
	}
	return len(a.Body) == len(b.Body) && sameMessage(typeOf(url), a.Body, b.Body, maxDepth)
}

// sameMessage compares two messages field by field, and looks only into fields whose bytes differ. Messages of no known kind, and
// what is no message, differ.
func sameMessage(kind protoreflect.MessageDescriptor, a, b []byte, depth int) bool {
	if kind == nil || depth == 0 {
		return false
	}
	whole := a
	for len(a) > 0 && len(b) > 0 {
		one, two := firstField(a), firstField(b)
		if len(one.whole) == 0 || len(two.whole) == 0 {
			return false
		}
		if !bytes.Equal(one.whole, two.whole) {
			field := kind.Fields().ByNumber(one.number)
			switch {
			case field == nil || one.number != two.number || one.value == nil || two.value == nil:
				return false
			case field.IsMap():
				var ones, twos [][]byte
				ones, one.whole = entries(a, one.number)
				twos, two.whole = entries(b, one.number)
				if !sameEntries(field.Message(), ones, twos, depth) {
					return false
				}
			case !sameMessage(inside(kind, field, whole), one.value, two.value, depth-1):
				return false
			}
		}
		a, b = a[len(one.whole):], b[len(two.whole):]
	}
	return len(a) == len(b)
}

// sameEntries compares the entries of two maps, which may have any order.
func sameEntries(kind protoreflect.MessageDescriptor, a, b [][]byte, depth int) bool {
	byKey := func(x, y []byte) int { return bytes.Compare(firstField(x).whole, firstField(y).whole) }
	slices.SortStableFunc(a, byKey)
	slices.SortStableFunc(b, byKey)
	return slices.EqualFunc(a, b, func(x, y []byte) bool { return bytes.Equal(x, y) || sameMessage(kind, x, y, depth-1) })
}

// rawField is one field of a message on the wire.
type rawField struct {
	number       protowire.Number
	whole, value []byte // with its tag, and, of one that has bytes, without
}

// firstField is the first one of a message; it is empty where there is none.
func firstField(b []byte) (f rawField) {
	number, wire, head := protowire.ConsumeTag(b)
	if head < 0 {
		return rawField{}
	}
	size := protowire.ConsumeFieldValue(number, wire, b[head:])
	if size < 0 {
		return rawField{}
	}
	f = rawField{number: number, whole: b[:head+size]}
	if wire == protowire.BytesType {
		f.value, _ = protowire.ConsumeBytes(f.whole[head:])
	}
	return f
}

// entries are those of a map that a message begins with, and all of their bytes in it.
func entries(b []byte, number protowire.Number) (all [][]byte, whole []byte) {
	rest := b
	for f := firstField(rest); f.number == number && f.value != nil; f = firstField(rest) {
		all = append(all, f.value)
		rest = rest[len(f.whole):]
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
	url, _ := lastField(message, anyType)
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
