package document

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
	networking "istio.io/api/networking/v1alpha3"
)

// kinds is a message with a field of every kind that fill knows, alone, in a list and in a map, and one that it does not.
func kinds(t *testing.T) protoreflect.MessageDescriptor {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{}
	const text = `{"name": "kinds.proto", "package": "k", "syntax": "proto3",
		"enumType": [{"name": "E", "value": [{"name": "ZERO", "number": 0}, {"name": "TWO", "number": 2}]}],
		"messageType": [{"name": "M", "field": [
			{"name": "a_string", "number": 1, "type": "TYPE_STRING", "label": "LABEL_OPTIONAL"},
			{"name": "a_bool", "number": 2, "type": "TYPE_BOOL", "label": "LABEL_OPTIONAL"},
			{"name": "an_enum", "number": 3, "type": "TYPE_ENUM", "typeName": ".k.E", "label": "LABEL_OPTIONAL"},
			{"name": "a_uint32", "number": 4, "type": "TYPE_UINT32", "label": "LABEL_OPTIONAL"},
			{"name": "a_message", "number": 5, "type": "TYPE_MESSAGE", "typeName": ".k.M", "label": "LABEL_OPTIONAL"},
			{"name": "strings", "number": 6, "type": "TYPE_STRING", "label": "LABEL_REPEATED"},
			{"name": "enums", "number": 7, "type": "TYPE_ENUM", "typeName": ".k.E", "label": "LABEL_REPEATED"},
			{"name": "numbers", "number": 8, "type": "TYPE_UINT32", "label": "LABEL_REPEATED"},
			{"name": "messages", "number": 9, "type": "TYPE_MESSAGE", "typeName": ".k.M", "label": "LABEL_REPEATED"},
			{"name": "a_map", "number": 10, "type": "TYPE_MESSAGE", "typeName": ".k.M.AMapEntry", "label": "LABEL_REPEATED"},
			{"name": "some_bytes", "number": 11, "type": "TYPE_BYTES", "label": "LABEL_OPTIONAL"}],
		"nestedType": [{"name": "AMapEntry", "options": {"mapEntry": true}, "field": [
			{"name": "key", "number": 1, "type": "TYPE_STRING", "label": "LABEL_OPTIONAL"},
			{"name": "value", "number": 2, "type": "TYPE_UINT32", "label": "LABEL_OPTIONAL"}]}]}]}`
	if err := protojson.Unmarshal([]byte(text), file); err != nil {
		t.Fatal(err)
	}
	fd, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return fd.Messages().ByName("M")
}

// fillWith fills m from YAML.
func fillWith(t testing.TB, m proto.Message, text string) *Error {
	t.Helper()
	c := Chunk{Text: []byte(text)}
	tree, err := NewStream([]Chunk{c}).Next(c)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader()
	r.Begin(c.Text)
	return r.Fill(m.ProtoReflect(), tree)
}

// TestFillLikeProtojson wants the message that protojson makes of the same valid text.
func TestFillLikeProtojson(t *testing.T) {
	md := kinds(t)
	newKinds := func() proto.Message { return dynamicpb.NewMessage(md) }
	newEntry := func() proto.Message { return &networking.ServiceEntry{} }
	newFilter := func() proto.Message { return &networking.EnvoyFilter{} }
	for _, c := range []struct {
		text  string
		empty func() proto.Message
	}{
		{`{}`, newKinds},
		{`{"aString": "x", "aBool": true, "anEnum": "TWO", "aUint32": 4294967295}`, newKinds},
		{`{"a_string": "x", "a_bool": false, "an_enum": "ZERO", "a_uint32": 0}`, newKinds},
		{`{"aString": null, "aBool": null, "anEnum": null, "aUint32": null, "aMessage": null, "strings": null, "aMap": null}`, newKinds},
		{`{"aUint32": 80.0}`, newKinds},
		{`{"aUint32": 1e3}`, newKinds},
		{`{"strings": ["", "é"], "enums": ["TWO", "ZERO"], "numbers": [1, 0], "messages": [{}, {"aBool": true}], "aMap": {"": 0, "b": 2}}`, newKinds},
		{`{"strings": [], "messages": [], "aMap": {}, "aMessage": {}}`, newKinds},
		{`{"aMessage": {"aMessage": {"messages": [{"aMap": {"a": 1}}]}}}`, newKinds},
		{`{"hosts": ["a.x", "*.b"], "addresses": ["10.0.0.0/8"], "location": "MESH_INTERNAL", "resolution": "STATIC",
		   "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}], "exportTo": ["."],
		   "subjectAltNames": ["s"], "workload_selector": {"labels": {"a": "b"}},
		   "endpoints": [{"address": "1.2.3.4", "ports": {"http": 1}, "labels": {"a": "b"}, "network": "n", "locality": "r/z", "weight": 3, "service_account": "s"}]}`, newEntry},
		{`{"priority": -7, "workloadSelector": {"labels": {"app": "a"}}, "targetRefs": [{"kind": "Gateway", "name": "g"}],
		   "configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": "ANY", "proxy": {"proxyVersion": "^1"}, "listener": {"filter_chain": {"filter": {"name": "f", "sub_filter": {"name": "s"}}}}},
		   "patch": {"operation": "MERGE", "filterClass": "AUTHN", "value": {"a_b": [1, -1.5, null, "x", {"@type": true}], "cD": {}, "n": 9007199254740992}}}]}`, newFilter},
	} {
		want, got := c.empty(), c.empty()
		if err := protojson.Unmarshal([]byte(c.text), want); err != nil {
			t.Fatal(err)
		}
		if ferr := fillWith(t, got, c.text); ferr != nil {
			t.Errorf("%s: %v", c.text, ferr)
		} else if !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", c.text, got, want)
		}
	}
}

func TestFillRefuses(t *testing.T) {
	md := kinds(t)
	for _, c := range []struct{ text, field, reason string }{
		{"[]", "", "is a list, should be an object"},
		{"null", "", "is null, should be an object"},
		{"aString: 1", ".aString", "is 1, should be a string; quote it"},
		{"aString: yes", ".aString", "is true, should be a string; quote it"},
		{"aString: {}", ".aString", "is an object, should be a string; quote it"},
		{"aString: !!binary /w==", ".aString", "should be a string"},
		{"aBool: \"true\"", ".aBool", `is "true", should be true or false`},
		{"anEnum: 2", ".anEnum", "is 2, should be one of ZERO, TWO"},
		{"anEnum: two", ".anEnum", `is "two", should be one of ZERO, TWO`},
		{"aUint32: \"80\"", ".aUint32", `is "80", should be a whole number from 0`},
		{"aUint32: 80.5", ".aUint32", "is 80.5, should be a whole number"},
		{"aUint32: -1", ".aUint32", "is -1, should be a whole number"},
		{"aUint32: 4294967296", ".aUint32", "is 4294967296, should be"},
		{"aUint32: 4294967296.0", ".aUint32", "is 4294967296, should be"},
		{"aUint32: 18446744073709551615", ".aUint32", "is 18446744073709551615, should be"},
		{"aUint32: .nan", ".aUint32", "is NaN, should be"},
		{"aUint32: .inf", ".aUint32", "is +Inf, should be"},
		{"aMessage: x", ".aMessage", `is "x", should be an object`},
		{"strings: x", ".strings", `is "x", should be a list`},
		{"strings: [a, null]", ".strings[1]", "is null, should be a string"},
		{"numbers: [1, a]", ".numbers[1]", `is "a", should be a whole number`},
		{"messages: [{}, {aMessage: {messages: [{aBool: 1}]}}]", ".messages[1].aMessage.messages[0].aBool", "is 1, should be true or false"},
		{"messages: [null]", ".messages[0]", "is null, should be an object"},
		{"aMap: [a]", ".aMap", "is a list, should be a map"},
		{"aMap: {a: 1, c: w, b: x}", ".aMap[b]", `is "x", should be a whole number`},
		{"aMap: {1: 1, \"1\": 2}", ".aMap[1]", "is there twice"},
		{"aMap: {a: null}", ".aMap[a]", "is null, should be a whole number"},
		{"someBytes: YQ==", ".someBytes", "bytes, is not supported"},
		{"aBool: true\na_bool: false", ".a_bool", "same field as aBool"},
		{"aBool: null\na_bool: null", ".a_bool", "same field as aBool"},
		{"z: 1\nother: 2", ".other", "unknown field; known are aString, aBool, "},
		{"y: 1", ".true", "unknown field"},
		{"aString: " + strings.Repeat("x", 1000) + "\naBool: " + strings.Repeat("y", 1000), ".aBool", "y...\", should be true or false"},
	} {
		ferr := fillWith(t, dynamicpb.NewMessage(md), c.text)
		if ferr == nil || ferr.Field != c.field || !strings.Contains(ferr.Reason, c.reason) {
			t.Errorf("%s: %v, want field %q, reason ...%s...", c.text, ferr, c.field, c.reason)
		}
	}
}

// TestMessagesAreKnown wants fill to know every field of our messages: an update of istio.io/api may bring new kinds.
func TestMessagesAreKnown(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var check func(md protoreflect.MessageDescriptor)
	check = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		if md.FullName() == "google.protobuf.Struct" {
			return
		}
		if strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
			t.Errorf("%s: a type with a JSON form of its own", md.FullName())
		}
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			value := fd
			if fd.IsMap() {
				value = fd.MapValue()
				if fd.MapKey().Kind() != protoreflect.StringKind || value.Kind() == protoreflect.MessageKind {
					t.Errorf("%s: a map of %s to %s", fd.FullName(), fd.MapKey().Kind(), value.Kind())
				}
			}
			switch value.Kind() {
			case protoreflect.MessageKind:
				check(value.Message())
			case protoreflect.StringKind, protoreflect.BoolKind, protoreflect.EnumKind, protoreflect.Uint32Kind, protoreflect.Int32Kind:
			default:
				t.Errorf("%s: the kind %s", fd.FullName(), value.Kind())
			}
		}
	}
	check((&networking.ServiceEntry{}).ProtoReflect().Descriptor())
	check((&networking.WorkloadEntry{}).ProtoReflect().Descriptor())
	if len(seen) != 4 {
		t.Errorf("checked %v", seen)
	}
	check((&networking.EnvoyFilter{}).ProtoReflect().Descriptor())
	if len(seen) < 15 {
		t.Errorf("checked %v", seen)
	}
}

// FuzzFill compares fill with protojson: what fill takes of a JSON object, protojson takes too, as the same message.
func FuzzFill(f *testing.F) {
	f.Add(`{"hosts": ["a"], "ports": [{"number": 80.0, "targetPort": 1e3}], "endpoints": [{"labels": {"a": ""}}]}`)
	f.Add(`{"hosts": null, "workload_selector": {"labels": {}}, "resolution": "DNS", "endpoints": [{"weight": -0}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		c := Chunk{Text: []byte(text)}
		if !c.isJSON() {
			return
		}
		tree, err := NewStream([]Chunk{c}).Next(c)
		if err != nil {
			return
		}
		r := NewReader()
		r.Begin(c.Text)
		got, want := &networking.ServiceEntry{}, &networking.ServiceEntry{}
		if r.Fill(got.ProtoReflect(), tree) != nil {
			return
		}
		if err := protojson.Unmarshal(c.Text, want); err != nil || !proto.Equal(got, want) {
			t.Errorf("%v, protojson: %v, error %v", got, want, err)
		}
	})
}
