package document

import (
	"math"
	"strconv"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
)

// exactInteger is the largest whole number up to which a google.protobuf.Struct, whose numbers are float64, has each.
const exactInteger = 1 << 53

// fillMessage fills a message by its fields, or one that holds any JSON object with what the tree says.
func (r *Reader) fillMessage(m protoreflect.Message, v any) *Error {
	free, is := m.Interface().(*structpb.Struct)
	if !is {
		return r.Fill(m, v)
	}
	value, ferr := r.free(v)
	if ferr == nil && value.GetStructValue() == nil {
		ferr = wrongType(v, "an object")
	}
	free.Fields = value.GetStructValue().GetFields()
	return ferr
}

// free returns any tree as JSON has it.
func (r *Reader) free(v any) (*structpb.Value, *Error) {
	switch v := v.(type) {
	case nil:
		return structpb.NewNullValue(), nil
	case bool:
		return structpb.NewBoolValue(v), nil
	case string:
		s, ferr := r.Text(v)
		return structpb.NewStringValue(s), ferr
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, wrongType(v, "a number that JSON has")
		}
		return structpb.NewNumberValue(v), nil
	case int:
		if v > exactInteger || v < -exactInteger {
			return nil, wrongType(v, "quoted: a number as large is not exact here")
		}
		return structpb.NewNumberValue(float64(v)), nil
	case int64, uint64:
		return nil, wrongType(v, "quoted: a number as large is not exact here")
	case []any:
		list := &structpb.ListValue{Values: make([]*structpb.Value, len(v))}
		for i := range v {
			var ferr *Error
			if list.Values[i], ferr = r.free(v[i]); ferr != nil {
				return nil, ferr.In("[" + strconv.Itoa(i) + "]")
			}
		}
		return structpb.NewListValue(list), nil
	case map[any]any:
		return r.freeObject(v)
	}
	return nil, wrongType(v, "a JSON value")
}

// freeObject names the first wrong entry by key, as fillMap does.
func (r *Reader) freeObject(v map[any]any) (*structpb.Value, *Error) {
	fields := make(map[string]*structpb.Value, len(v))
	var first *Error
	for k, item := range v {
		name, ferr := r.Text(keyName(k))
		var value *structpb.Value
		if ferr == nil {
			value, ferr = r.free(item)
		}
		if ferr == nil && fields[name] != nil {
			ferr = &Error{"", "is there twice, as a string and as a number or a truth value"}
		}
		fields[name] = value
		if ferr = ferr.In("." + Abridge(keyName(k))); ferr != nil && (first == nil || ferr.Field < first.Field) {
			first = ferr
		}
	}
	return structpb.NewStructValue(&structpb.Struct{Fields: fields}), first
}
