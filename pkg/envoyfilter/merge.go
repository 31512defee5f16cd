package envoyfilter

import (
	"fmt"
	"strings"

	xdsv3 "github.com/cncf/xds/go/xds/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// mergeAny merges more into config, of the same type. It is proto.Merge as istiod has it: a field that is set goes over,
// a list is appended to, an entry of a map goes over the entry; a duration goes over as a whole, since 1.5s over 3s would
// else be 1.5s and 500ms over 3s be 3.5s.
func mergeAny(config, more *anypb.Any) (*anypb.Any, error) {
	into, err := config.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("its configuration is of type %s, which cannot be merged into", nameOf(config))
	}
	from, err := more.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("a configuration of type %s cannot be merged", nameOf(more))
	}
	if a, b := into.ProtoReflect().Descriptor(), from.ProtoReflect().Descriptor(); a != b {
		return nil, fmt.Errorf("its configuration is of type %s, not %s", a.FullName(), b.FullName())
	}
	if a, is := into.(*xdsv3.TypedStruct); is {
		b := from.(*xdsv3.TypedStruct)
		if a.GetTypeUrl() != b.GetTypeUrl() {
			return nil, fmt.Errorf("its configuration is of type %s, not %s", a.GetTypeUrl(), b.GetTypeUrl())
		}
		a.Value = mergeStruct(a.GetValue(), b.GetValue())
	} else {
		mergeMessage(into.ProtoReflect(), from.ProtoReflect())
	}
	return pack(into)
}

func nameOf(a *anypb.Any) string {
	return a.GetTypeUrl()[strings.LastIndexByte(a.GetTypeUrl(), '/')+1:]
}

func mergeMessage(into, from protoreflect.Message) {
	from.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsList():
			list := into.Mutable(fd).List()
			for i := range v.List().Len() {
				list.Append(v.List().Get(i))
			}
		case fd.IsMap():
			entries := into.Mutable(fd).Map()
			v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries.Set(k, v)
				return true
			})
		case fd.Message() == nil, fd.Message().FullName() == proto.MessageName(&durationpb.Duration{}):
			into.Set(fd, v)
		default:
			mergeMessage(into.Mutable(fd).Message(), v.Message())
		}
		return true
	})
}

// mergeStruct does what mergeMessage does to a message whose type only Envoy knows.
func mergeStruct(into, from *structpb.Struct) *structpb.Struct {
	if into == nil {
		into = &structpb.Struct{}
	}
	if into.Fields == nil {
		into.Fields = map[string]*structpb.Value{}
	}
	for k, v := range from.GetFields() {
		k = spelled(into, k)
		old := into.Fields[k]
		switch {
		case old.GetStructValue() != nil && v.GetStructValue() != nil:
			mergeStruct(old.GetStructValue(), v.GetStructValue())
		case old.GetListValue() != nil && v.GetListValue() != nil:
			old.GetListValue().Values = append(old.GetListValue().GetValues(), v.GetListValue().GetValues()...)
		default:
			into.Fields[k] = v
		}
	}
	return into
}

// spelled is the key by which into has the field k: as statPrefix or as stat_prefix. Envoy refuses a field with both.
func spelled(into *structpb.Struct, k string) string {
	for has := range into.GetFields() {
		if has != k && folded(has) == folded(k) {
			return has
		}
	}
	return k
}

func folded(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }
