package document

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// aliasAllowance is how many bytes of text a document may have beyond its own. The parser bounds how many nodes the
// aliases of a document make, not how long each one is.
const aliasAllowance = 8 << 20

// Reader reads the trees of documents into messages. It is not safe for concurrent use.
type Reader struct {
	names  map[string]string // see Intern
	budget int               // bytes of text that the document at hand may still have
}

// NewReader returns a reader that has read nothing.
func NewReader() *Reader { return &Reader{names: map[string]string{}} }

// Begin begins the document of a text.
func (r *Reader) Begin(text []byte) {
	r.budget = 2*len(text) + aliasAllowance // 2: an escape of two bytes may stand for three, as \L does
}

// Exhausted says whether the document has more text than it may: nothing that is read of it from here on is right.
func (r *Reader) Exhausted() bool { return r.budget < 0 }

// Intern returns one copy of a string that many documents share.
func (r *Reader) Intern(s string) string {
	const most = 4096 // names that repeat are few; beyond this they do not
	if v, ok := r.names[s]; ok {
		return v
	}
	s = strings.Clone(s)
	if len(r.names) < most {
		r.names[s] = s
	}
	return s
}

// Fill sets the fields of m, which is empty, to what a tree says. It is strict: an unknown field or a wrong type is an
// error that names the field's path below m, as the schema of the CRD would on a cluster. A field goes by its JSON name
// or its name in the .proto file; null is a field that is not set. After an error m is of no use.
//
// Fill knows the kinds of fields that our messages have. protojson knows them all, but wants the tree as text again,
// names a column of that text instead of a field, and takes "80" for 80.
func (r *Reader) Fill(m protoreflect.Message, tree any) *Error {
	fields, ok := tree.(map[any]any)
	if !ok {
		return wrongType(tree, "an object")
	}
	known, descriptors := 0, m.Descriptor().Fields()
	for i := range descriptors.Len() {
		fd := descriptors.Get(i)
		name := fd.JSONName()
		v, found := fields[name]
		if other := fd.TextName(); other != name {
			if w, also := fields[other]; also && found {
				return &Error{"." + other, "is the same field as " + name + ", which is there too; remove one of the two"}
			} else if also {
				name, v, found = other, w, true
			}
		}
		if found {
			known++
		}
		if v == nil {
			continue
		}
		if one := fd.ContainingOneof(); one != nil && m.WhichOneof(one) != nil {
			return &Error{"." + name, "is there beside " + m.WhichOneof(one).JSONName() + ", of which only one can be; remove one of the two"}
		}
		if ferr := r.setField(m, fd, v); ferr != nil {
			return ferr.In("." + name)
		}
	}
	if known < len(fields) {
		return unknownField(descriptors, fields)
	}
	return nil
}

func (r *Reader) setField(m protoreflect.Message, fd protoreflect.FieldDescriptor, v any) *Error {
	switch {
	case fd.IsMap():
		return r.fillMap(m.Mutable(fd).Map(), fd, v)
	case fd.IsList():
		return r.fillList(m.Mutable(fd).List(), fd, v)
	case fd.Kind() == protoreflect.MessageKind:
		return r.fillMessage(m.Mutable(fd).Message(), v)
	}
	value, ferr := r.scalar(fd, v)
	if ferr == nil {
		m.Set(fd, value)
	}
	return ferr
}

func (r *Reader) fillList(list protoreflect.List, fd protoreflect.FieldDescriptor, v any) *Error {
	items, ok := v.([]any)
	if !ok {
		return wrongType(v, "a list")
	}
	for i, item := range items {
		var ferr *Error
		if fd.Kind() == protoreflect.MessageKind {
			ferr = r.fillMessage(list.AppendMutable().Message(), item)
		} else {
			var value protoreflect.Value
			if value, ferr = r.scalar(fd, item); ferr == nil {
				list.Append(value)
			}
		}
		if ferr != nil {
			return ferr.In("[" + strconv.Itoa(i) + "]")
		}
	}
	return nil
}

// fillMap fills a map from strings to scalars; our messages have no others. Where several entries are wrong, it names
// the first by key, so that the message does not change from one reading to the next.
func (r *Reader) fillMap(m protoreflect.Map, fd protoreflect.FieldDescriptor, v any) *Error {
	entries, ok := v.(map[any]any)
	if !ok {
		return wrongType(v, "a map")
	}
	var first *Error
	for k, v := range entries {
		name, ferr := r.Text(keyName(k))
		var value protoreflect.Value
		if ferr == nil {
			value, ferr = r.scalar(fd.MapValue(), v)
		}
		key := protoreflect.ValueOfString(name).MapKey()
		if ferr == nil && m.Has(key) {
			ferr = &Error{"", "is there twice, as a string and as a number or a truth value"}
		}
		if ferr == nil {
			m.Set(key, value)
		} else if ferr = ferr.In("[" + Abridge(keyName(k)) + "]"); first == nil || ferr.Field < first.Field {
			first = ferr
		}
	}
	return first
}

// scalar returns v as a value of fd, or of the items of fd.
func (r *Reader) scalar(fd protoreflect.FieldDescriptor, v any) (protoreflect.Value, *Error) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		s, ferr := r.Text(v)
		return protoreflect.ValueOfString(s), ferr
	case protoreflect.BoolKind:
		b, ok := v.(bool)
		if !ok {
			return protoreflect.Value{}, wrongType(v, "true or false")
		}
		return protoreflect.ValueOfBool(b), nil
	case protoreflect.Uint32Kind:
		n, ok := uint32Of(v)
		if !ok {
			return protoreflect.Value{}, wrongType(v, "a whole number from 0 to 4294967295")
		}
		return protoreflect.ValueOfUint32(n), nil
	case protoreflect.Int32Kind:
		n, ok := int32Of(v)
		if !ok {
			return protoreflect.Value{}, wrongType(v, "a whole number from -2147483648 to 2147483647")
		}
		return protoreflect.ValueOfInt32(n), nil
	case protoreflect.EnumKind:
		s, _ := v.(string) // the schema of the CRD takes names only
		known := fd.Enum().Values()
		e := known.ByName(protoreflect.Name(s))
		if e == nil {
			names := namesOf(known.Len(), func(i int) string { return string(known.Get(i).Name()) })
			return protoreflect.Value{}, wrongType(v, "one of "+names)
		}
		return protoreflect.ValueOfEnum(e.Number()), nil
	}
	return protoreflect.Value{}, &Error{"", "cannot be set here: its type, " + fd.Kind().String() + ", is not supported"}
}

// Text returns a string of the document, and charges it to the document's budget.
func (r *Reader) Text(v any) (string, *Error) {
	s, ok := v.(string)
	if !ok || !utf8.ValidString(s) { // YAML's !!binary may be anything
		return "", wrongType(v, "a string; quote it")
	}
	if r.budget -= len(s); r.budget < 0 {
		return "", &Error{"", "is too long: the document's aliases make too much of its text"}
	}
	return s, nil
}

// uint32Of takes 80.0 for 80, as YAML has no word on which of the two a number is.
func uint32Of(v any) (uint32, bool) {
	switch n := v.(type) {
	case int:
		return uint32(n), n >= 0 && uint64(n) <= math.MaxUint32
	case float64:
		return uint32(n), n >= 0 && n <= math.MaxUint32 && n == math.Trunc(n)
	}
	return 0, false // int64 and uint64 are for what does not fit an int
}

func int32Of(v any) (int32, bool) {
	switch n := v.(type) {
	case int:
		return int32(n), n >= math.MinInt32 && n <= math.MaxInt32
	case float64:
		return int32(n), n >= math.MinInt32 && n <= math.MaxInt32 && n == math.Trunc(n)
	}
	return 0, false
}

// wrongType says what v is, in one line however long v is.
func wrongType(v any, want string) *Error {
	is := "a list"
	switch v := v.(type) {
	case map[any]any:
		is = "an object"
	case []any:
	case string:
		is = strconv.Quote(Abridge(v))
	default:
		text, err := json.Marshal(v) // spells numbers as people do
		if err != nil {
			text = fmt.Append(nil, v) // NaN
		}
		is = string(text)
	}
	return &Error{"", "is " + is + ", should be " + want}
}

func unknownField(known protoreflect.FieldDescriptors, fields map[any]any) *Error {
	names := namesOf(known.Len(), func(i int) string { return known.Get(i).JSONName() })
	for _, name := range KeyNames(fields) {
		if known.ByJSONName(name) == nil && known.ByTextName(name) == nil {
			return &Error{"." + Abridge(name), "unknown field; known are " + names}
		}
	}
	return &Error{"", "has a key that is no string"} // unreachable: no field has a name such as "true" or "1"
}

// Abridge keeps a value of the user's short enough for one log line.
func Abridge(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func namesOf(n int, name func(int) string) string {
	names := make([]string, n)
	for i := range names {
		names[i] = name(i)
	}
	return strings.Join(names, ", ")
}
