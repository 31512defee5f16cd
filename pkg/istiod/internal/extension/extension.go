// Package extension owns which extensions of Envoy's a configuration needs, and which an Envoy has: by the types of their configurations.
package extension

import (
	"bytes"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"
)

// Set are the extensions that an Envoy has, by the type of their configuration.
type Set map[string]bool

// Of returns those that an Envoy names in its node.
func Of(node *corev3.Node) Set {
	has := make(Set)
	for _, e := range node.GetExtensions() {
		for _, name := range e.GetTypeUrls() {
			has[name] = has[name] || !e.GetDisabled()
		}
	}
	return has
}

// Lacks returns the types of the extensions that a resource needs and this Envoy does not have, sorted. They are found by the
// URLs of the types in its bytes, at any depth. An Envoy that names no extensions at all lacks none.
func (has Set) Lacks(resource []byte) []string {
	if len(has) == 0 {
		return nil
	}
	var names []string
	for name := range Types(resource) {
		if Is(string(name)) && !has[string(name)] && !slices.Contains(names, string(name)) {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	return names
}

// Is tells the configuration of an extension from what else stands in an Any: a value, or a wrapper.
func Is(name string) bool {
	for _, other := range []string{"google.", "xds.", "udpa.", "envoy.config.", "envoy.type.", "envoy.service.", "envoy.data."} {
		if strings.HasPrefix(name, other) {
			return false
		}
	}
	return true
}

// Fields that hold the URL of a type: that of an Any and of a TypedStruct, and those that an ExtensionConfigSource allows.
const (
	fieldTypeURL  protowire.Number = 1
	fieldTypeURLs protowire.Number = 4
	// typePrefix begins the URL of every type.
	typePrefix = "type.googleapis.com/"
	// maxTypeURL is the longest of these strings that is looked for: one byte has its length.
	maxTypeURL = 127
)

// Types yields the names of the types whose URLs stand in a message. It reads no message, whose types need not be known here:
// a string of that form with its length and such a field's number before it is a URL.
func Types(message []byte) func(yield func(name []byte) bool) {
	prefix := []byte(typePrefix)
	return func(yield func([]byte) bool) {
		for at := 0; ; at += len(prefix) {
			next := bytes.Index(message[at:], prefix)
			if next < 0 {
				return
			}
			at += next
			if name := typeAt(message, at); len(name) > 0 && !yield(name) {
				return
			}
		}
	}
}

// typeAt returns the name of the type whose URL begins at a place of a message; nil: none does.
func typeAt(message []byte, at int) []byte {
	if at < 2 {
		return nil
	}
	field, length := protowire.Number(message[at-2]>>3), int(message[at-1])
	isURL := message[at-2]&7 == byte(protowire.BytesType) && (field == fieldTypeURL || field == fieldTypeURLs)
	if !isURL || length > maxTypeURL || length < len(typePrefix) || at+length > len(message) {
		return nil
	}
	return message[at+len(typePrefix) : at+length]
}
