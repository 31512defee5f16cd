package config

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

type protoMessage = protoreflect.Message

// hasPath reports whether a message has a field at a dotted path of JSON names.
func hasPath(md protoreflect.MessageDescriptor, path string) bool {
	name, rest, more := strings.Cut(path, ".")
	fd := md.Fields().ByJSONName(name)
	return fd != nil && (!more || (fd.Message() != nil && hasPath(fd.Message(), rest)))
}
