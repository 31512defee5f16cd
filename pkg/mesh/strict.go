package mesh

import (
	"encoding/json"
	"fmt"
	"math"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// fill sets the fields of m, which is empty, to what a tree says. It is strict: an unknown field or a wrong type is an
// error that names the field's path below m, as the schema of the CRD would on a cluster. A field goes by its JSON name
// or its name in the .proto file; null is a field that is not set. After an error m is of no use.
//
// fill knows the kinds of fields that our messages have. protojson knows them all, but wants the tree as text again,
// names a column of that text instead of a field, and takes "80" for 80.
func (d *decoder) fill(m protoreflect.Message, tree any) *fieldError {
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
				return &fieldError{"." + other, "is the same field as " + name + ", which is there too; remove one of the two"}
			} else if also {
				name, v, found = other, w, true
			}
		}
		if found {
			known++
		}
		if v != nil {
			if ferr := d.setField(m, fd, v); ferr != nil {
				return ferr.in("." + name)
			}
		}
	}
	if known < len(fields) {
		return unknownField(descriptors, fields)
	}
	return nil
}

func (d *decoder) setField(m protoreflect.Message, fd protoreflect.FieldDescriptor, v any) *fieldError {
	switch {
	case fd.IsMap():
		return d.fillMap(m.Mutable(fd).Map(), fd, v)
	case fd.IsList():
		return d.fillList(m.Mutable(fd).List(), fd, v)
	case fd.Kind() == protoreflect.MessageKind:
		return d.fill(m.Mutable(fd).Message(), v)
	}
	value, ferr := d.scalar(fd, v)
	if ferr == nil {
		m.Set(fd, value)
	}
	return ferr
}

func (d *decoder) fillList(list protoreflect.List, fd protoreflect.FieldDescriptor, v any) *fieldError {
	items, ok := v.([]any)
	if !ok {
		return wrongType(v, "a list")
	}
	for i, item := range items {
		var ferr *fieldError
		if fd.Kind() == protoreflect.MessageKind {
			ferr = d.fill(list.AppendMutable().Message(), item)
		} else {
			var value protoreflect.Value
			if value, ferr = d.scalar(fd, item); ferr == nil {
				list.Append(value)
			}
		}
		if ferr != nil {
			return ferr.in("[" + strconv.Itoa(i) + "]")
		}
	}
	return nil
}

// fillMap fills a map from strings to scalars; our messages have no others. Where several entries are wrong, it names
// the first by key, so that the message does not change from one reading to the next.
func (d *decoder) fillMap(m protoreflect.Map, fd protoreflect.FieldDescriptor, v any) *fieldError {
	entries, ok := v.(map[any]any)
	if !ok {
		return wrongType(v, "a map")
	}
	var first *fieldError
	for k, v := range entries {
		name, ferr := d.text(keyName(k))
		var value protoreflect.Value
		if ferr == nil {
			value, ferr = d.scalar(fd.MapValue(), v)
		}
		key := protoreflect.ValueOfString(name).MapKey()
		if ferr == nil && m.Has(key) {
			ferr = &fieldError{"", "is there twice, as a string and as a number or a truth value"}
		}
		if ferr == nil {
			m.Set(key, value)
		} else if ferr = ferr.in("[" + abridge(keyName(k)) + "]"); first == nil || ferr.field < first.field {
			first = ferr
		}
	}
	return first
}

// scalar returns v as a value of fd, or of the items of fd.
func (d *decoder) scalar(fd protoreflect.FieldDescriptor, v any) (protoreflect.Value, *fieldError) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		s, ferr := d.text(v)
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
	case protoreflect.EnumKind:
		s, _ := v.(string) // the schema of the CRD takes names only
		e := fd.Enum().Values().ByName(protoreflect.Name(s))
		if e == nil {
			return protoreflect.Value{}, wrongType(v, "one of "+enumNames(fd.Enum()))
		}
		return protoreflect.ValueOfEnum(e.Number()), nil
	}
	return protoreflect.Value{}, &fieldError{"", "can not be set here: its type, " + fd.Kind().String() + ", is not supported"}
}

// text returns a string of the document, and charges it to the document's budget.
func (d *decoder) text(v any) (string, *fieldError) {
	s, ok := v.(string)
	if !ok || !utf8.ValidString(s) { // YAML's !!binary may be anything
		return "", wrongType(v, "a string; quote it")
	}
	if d.budget -= len(s); d.budget < 0 {
		return "", &fieldError{"", "is too long: the document's aliases make too much of its text"}
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

// wrongType says what v is, in one line however long v is.
func wrongType(v any, want string) *fieldError {
	is := "a list"
	switch v := v.(type) {
	case map[any]any:
		is = "an object"
	case []any:
	case string:
		is = strconv.Quote(abridge(v))
	default:
		text, err := json.Marshal(v) // spells numbers as people do
		if err != nil {
			text = fmt.Append(nil, v) // NaN
		}
		is = string(text)
	}
	return &fieldError{"", "is " + is + ", should be " + want}
}

func unknownField(known protoreflect.FieldDescriptors, fields map[any]any) *fieldError {
	names := make([]string, known.Len())
	for i := range names {
		names[i] = known.Get(i).JSONName()
	}
	for _, name := range keyNames(fields) {
		if known.ByJSONName(name) == nil && known.ByTextName(name) == nil {
			return &fieldError{"." + abridge(name), "unknown field; known are " + strings.Join(names, ", ")}
		}
	}
	return &fieldError{"", "has a key that is no string"} // unreachable: no field has a name such as "true" or "1"
}

// abridge keeps a value of the user's short enough for one log line.
func abridge(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func enumNames(ed protoreflect.EnumDescriptor) string {
	names := make([]string, ed.Values().Len())
	for i := range names {
		names[i] = string(ed.Values().Get(i).Name())
	}
	return strings.Join(names, ", ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// in puts the place of what e is about before the path that e has; a nil e stays nil.
func (e *fieldError) in(prefix string) *fieldError {
	if e == nil {
		return nil
	}
	return &fieldError{prefix + e.field, e.reason}
}
