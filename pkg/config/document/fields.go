package document

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fields checks a tree of JSON values against a message of Istio's API, which is the
// authority on names and types (protojson's rules), field by field, so that every
// wrong one is named and the others still count.
type Fields struct {
	// Known says of a field that the API lacks whether it counts all the same: one that it has dropped.
	Known func(path string) bool
	// Unknown is told of every other one that the API lacks.
	Unknown func(path string)
	// Wrong is told of a value that is none of its field's, and what would be.
	Wrong func(path, value, want string)
}

// Check returns the part of tree that is right, with fields under their JSON names
// and enumerations by name. msg is only a factory of messages of its type.
func (f Fields) Check(msg protoreflect.Message, tree map[string]any) map[string]any {
	return f.check(msg, tree, "")
}

// check is Check of a message whose fields' paths begin with prefix.
func (f Fields) check(msg protoreflect.Message, tree map[string]any, prefix string) map[string]any {
	out := make(map[string]any, len(tree))
	names := msg.Descriptor().Fields()
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		value := tree[key]
		if value == nil { // JSON null is an unset field
			continue
		}
		fd := names.ByJSONName(key)
		if fd == nil {
			fd = names.ByTextName(key)
		}
		switch {
		case fd != nil:
			if v, ok := f.field(msg, fd, value, prefix+fd.JSONName()); ok {
				out[fd.JSONName()] = v
			}
		case f.Known(prefix + camel(key)):
			out[camel(key)] = value
		default:
			f.Unknown(prefix + key)
		}
	}
	return out
}

// field checks one field, whose path is path.
func (f Fields) field(msg protoreflect.Message, fd protoreflect.FieldDescriptor, value any, path string) (any, bool) {
	switch {
	case fd.IsMap():
		return f.mapField(msg, fd, value, path)
	case fd.IsList():
		return f.listField(msg, fd, value, path)
	case isPlainMessage(fd):
		return f.settings(msg.NewField(fd).Message(), value, path)
	}
	return f.leaf(msg, fd, value, value, path)
}

// settings checks a value that is a message.
func (f Fields) settings(msg protoreflect.Message, value any, path string) (any, bool) {
	tree, ok := value.(map[string]any)
	if !ok {
		f.Wrong(path, Text(value), "want a map of settings")
		return nil, false
	}
	return f.check(msg, tree, path+"."), true
}

func (f Fields) mapField(msg protoreflect.Message, fd protoreflect.FieldDescriptor, value any, path string) (any, bool) {
	tree, ok := value.(map[string]any)
	if !ok {
		f.Wrong(path, Text(value), "want a map")
		return nil, false
	}
	out := make(map[string]any, len(tree))
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		member, at := tree[key], path+"."+key
		if isPlainMessage(fd.MapValue()) {
			member, ok = f.settings(msg.NewField(fd).Map().NewValue().Message(), member, at)
		} else {
			_, ok = f.leaf(msg, fd, map[string]any{key: member}, member, at)
		}
		if ok {
			out[key] = member
		}
	}
	return out, true
}

func (f Fields) listField(msg protoreflect.Message, fd protoreflect.FieldDescriptor, value any, path string) (any, bool) {
	list, ok := value.([]any)
	if !ok {
		f.Wrong(path, Text(value), "want a list")
		return nil, false
	}
	out := make([]any, 0, len(list))
	for i, member := range list {
		at := path + "[" + strconv.Itoa(i) + "]"
		if isPlainMessage(fd) {
			member, ok = f.settings(msg.NewField(fd).List().NewElement().Message(), member, at)
		} else {
			_, ok = f.leaf(msg, fd, []any{member}, member, at)
		}
		if ok {
			out = append(out, member)
		}
	}
	return out, true
}

// leaf lets protojson judge one value: whole is what the field gets (the value, or a
// list or map of just the value).
func (f Fields) leaf(msg protoreflect.Message, fd protoreflect.FieldDescriptor, whole, value any, path string) (any, bool) {
	probe := msg.New()
	doc, err := json.Marshal(map[string]any{fd.JSONName(): whole})
	if err == nil {
		err = protojson.Unmarshal(doc, probe.Interface())
	}
	isEnum := fd.Kind() == protoreflect.EnumKind && !fd.IsList() && !fd.IsMap()
	switch {
	case err == nil && !isEnum:
		return value, true
	case err == nil:
		if name := fd.Enum().Values().ByNumber(probe.Get(fd).Enum()); name != nil {
			return string(name.Name()), true
		}
	}
	f.Wrong(path, Text(value), want(fd))
	return nil, false
}

// isPlainMessage reports whether a field holds a message that JSON spells field by
// field; google.protobuf's own (Duration, wrappers, Struct, Any) have other forms.
func isPlainMessage(fd protoreflect.FieldDescriptor) bool {
	return fd.Kind() == protoreflect.MessageKind && fd.Message().FullName().Parent() != "google.protobuf"
}

// want says in words what a field takes.
func want(fd protoreflect.FieldDescriptor) string {
	if fd.IsMap() {
		fd = fd.MapValue()
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return "want true or false"
	case protoreflect.StringKind:
		return "want a string (in quotes)"
	case protoreflect.EnumKind:
		var names []string
		for i := range fd.Enum().Values().Len() {
			names = append(names, string(fd.Enum().Values().Get(i).Name()))
		}
		return "want one of " + strings.Join(names, ", ")
	case protoreflect.MessageKind:
		return wantMessage(fd.Message().FullName())
	}
	return "want a number of type " + fd.Kind().String()
}

func wantMessage(name protoreflect.FullName) string {
	switch name.Name() {
	case "Duration":
		return `want a duration in seconds, such as "45s"`
	case "BoolValue":
		return "want true or false"
	case "StringValue":
		return "want a string (in quotes)"
	case "Struct":
		return "want a map"
	case "Int32Value", "UInt32Value", "Int64Value", "UInt64Value", "DoubleValue", "FloatValue":
		return "want a number"
	}
	return fmt.Sprintf("want a %s", name)
}

// camel turns a proto field name into its JSON name; a JSON name stays as it is.
func camel(name string) string {
	parts := strings.Split(name, "_")
	for i, part := range parts[1:] {
		if part != "" {
			parts[i+1] = strings.ToUpper(part[:1]) + part[1:]
		}
	}
	return strings.Join(parts, "")
}
