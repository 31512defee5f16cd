// Package skim owns the first look at a large JSON text of which few fields are read: one pass checks all of it and leaves out what nobody
// reads, because a decoder passes over each byte up to four times, and much more slowly.
package skim

import (
	"encoding/json"
	"reflect"
	"strings"
)

// Shape is what is read of a value; a nil one is all of it.
type Shape struct {
	fields map[string]*Shape // of an object
	of     *Shape            // of a list's elements
}

// Cut is a value that is taken out as it is, with null in its place.
var Cut = &Shape{}

// With is an object's shape with a field more, or another shape of that field.
func (s *Shape) With(name string, field *Shape) *Shape {
	fields := make(map[string]*Shape, len(s.fields)+1)
	for name, field := range s.fields {
		fields[name] = field
	}
	fields[name] = field
	return &Shape{fields: fields}
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// Of is what a decoder reads of a value of type t: of structs the fields with a tag, of whatever else all.
func Of(t reflect.Type) *Shape {
	if reflect.PointerTo(t).Implements(unmarshaler) {
		return nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return Of(t.Elem())
	case reflect.Slice:
		if of := Of(t.Elem()); of != nil {
			return &Shape{of: of}
		}
	case reflect.Struct:
		fields := make(map[string]*Shape)
		for field := range t.Fields() {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				fields[name] = Of(field.Type)
			}
		}
		return &Shape{fields: fields}
	}
	return nil
}

// deepest is how deep values may lie in each other, which is less than decoders take.
const deepest = 1000

// Skim returns text less what s does not read, and the value that s cuts out, which is a part of text. A decoder that tells fields by their
// case makes the same of what is kept as of text, but for that value. It is not ok with what is no JSON, and with what decoders may see
// otherwise than this: names that are escaped, a value that is to be cut out twice. Then a decoder has to see text itself.
func (s *Shape) Skim(text []byte) (kept, cut []byte, ok bool) {
	k := keeper{reader: reader{text: text}}
	k.space()
	k.keep(s, deepest)
	k.space()
	if k.bad || k.at != len(text) {
		return nil, nil, false
	}
	return k.kept, k.cut, true
}

// keeper passes over a text and writes what is kept of it.
type keeper struct {
	reader
	kept, cut []byte
}

// keep passes over a value. One that has another form than s says is the decoder's to judge.
func (k *keeper) keep(s *Shape, depth int) {
	begin := k.at
	switch c := k.next(); {
	case s == Cut:
		k.skip(depth)
		k.bad = k.bad || k.cut != nil
		k.cut = k.text[begin:k.at]
		k.kept = append(k.kept, "null"...)
	case s != nil && s.fields != nil && c == '{' && depth > 0:
		k.object(s.fields, depth-1)
	case s != nil && s.of != nil && c == '[' && depth > 0:
		k.kept = append(k.kept, '[')
		k.each(']', func(first bool) {
			if !first {
				k.kept = append(k.kept, ',')
			}
			k.keep(s.of, depth-1)
		})
		k.kept = append(k.kept, ']')
	default:
		k.skip(depth)
		k.kept = append(k.kept, k.text[begin:k.at]...)
	}
}

func (k *keeper) object(fields map[string]*Shape, depth int) {
	k.kept = append(k.kept, '{')
	empty := true
	k.each('}', func(bool) {
		name, escaped := k.name()
		k.bad = k.bad || escaped
		field, read := fields[string(name)]
		if !read {
			k.skip(depth)
			return
		}
		if !empty {
			k.kept = append(k.kept, ',')
		}
		empty = false
		k.kept = append(append(append(k.kept, '"'), name...), '"', ':')
		k.keep(field, depth)
	})
	k.kept = append(k.kept, '}')
}
