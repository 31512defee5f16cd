package mesh

import (
	"encoding/json"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// decodeSpec fills m from the JSON of a spec, strictly: an unknown field or a wrong type is an error that names the
// field's path, as the schema of the CRD would on a cluster. (protojson alone names a column of text the user never
// saw, and takes "80" for 80.)
func decodeSpec(spec json.RawMessage, m proto.Message) *fieldError {
	var tree any
	d := json.NewDecoder(strings.NewReader(string(spec)))
	d.UseNumber()
	if err := d.Decode(&tree); err != nil {
		return &fieldError{"spec", err.Error()}
	}
	if err := checkMessage(m.ProtoReflect().Descriptor(), tree, "spec"); err != nil {
		return err
	}
	if err := protojson.Unmarshal(spec, m); err != nil {
		return &fieldError{"spec", err.Error()}
	}
	return nil
}

func checkMessage(md protoreflect.MessageDescriptor, v any, path string) *fieldError {
	fields, ok := v.(map[string]any)
	if !ok {
		return wrongType(path, v, "an object")
	}
	for _, name := range sortedKeys(fields) {
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			return &fieldError{path + "." + name, "unknown field; known are " + fieldNames(md)}
		}
		if fields[name] == nil { // null: not set
			continue
		}
		if err := checkField(fd, fields[name], path+"."+name); err != nil {
			return err
		}
	}
	return nil
}

func checkField(fd protoreflect.FieldDescriptor, v any, path string) *fieldError {
	switch {
	case fd.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			return wrongType(path, v, "a map")
		}
		for _, k := range sortedKeys(m) {
			if err := checkValue(fd.MapValue(), m[k], path+"["+k+"]"); err != nil {
				return err
			}
		}
	case fd.IsList():
		list, ok := v.([]any)
		if !ok {
			return wrongType(path, v, "a list")
		}
		for i, item := range list {
			if err := checkValue(fd, item, path+"["+strconv.Itoa(i)+"]"); err != nil {
				return err
			}
		}
	default:
		return checkValue(fd, v, path)
	}
	return nil
}

func checkValue(fd protoreflect.FieldDescriptor, v any, path string) *fieldError {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return checkMessage(fd.Message(), v, path)
	case protoreflect.EnumKind:
		s, ok := v.(string)
		if !ok || fd.Enum().Values().ByName(protoreflect.Name(s)) == nil {
			return wrongType(path, v, "one of "+enumNames(fd.Enum()))
		}
	case protoreflect.StringKind:
		if _, ok := v.(string); !ok {
			return wrongType(path, v, "a string; quote it")
		}
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			return wrongType(path, v, "true or false")
		}
	case protoreflect.Uint32Kind:
		n, ok := v.(json.Number)
		if !ok {
			return wrongType(path, v, "a whole number")
		}
		if _, err := strconv.ParseUint(n.String(), 10, 32); err != nil {
			return wrongType(path, v, "a whole number from 0 to 4294967295")
		}
	}
	return nil // kinds that no message of ours has are left to protojson
}

func wrongType(path string, v any, want string) *fieldError {
	text, err := json.Marshal(v)
	if err != nil {
		text = []byte(fmt.Sprintf("%T", v))
	}
	return &fieldError{path, "is " + abridge(string(text)) + ", should be " + want}
}

// abridge keeps a value of the user's short enough for one log line.
func abridge(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

func fieldNames(md protoreflect.MessageDescriptor) string {
	names := make([]string, md.Fields().Len())
	for i := range names {
		names[i] = md.Fields().Get(i).JSONName()
	}
	return strings.Join(names, ", ")
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
