package share

import (
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

const (
	typePrefix  = "type.googleapis.com/"
	managerType = typePrefix + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)

// Fields of Envoy's messages, whose objects in Go would be twenty times as large: a port may have ten thousand hosts.
const (
	listenerName       protowire.Number = 1
	listenerAddress    protowire.Number = 2
	listenerChains     protowire.Number = 3
	listenerDirection  protowire.Number = 16
	listenerDefault    protowire.Number = 25
	listenerBind       protowire.Number = 26
	listenerMatcher    protowire.Number = 32
	listenerAdditional protowire.Number = 33

	socketAddress     protowire.Number = 1 // of an Address
	socketHost        protowire.Number = 2
	socketPort        protowire.Number = 3
	additionalAddress protowire.Number = 1

	chainMatch    protowire.Number = 1
	chainFilters  protowire.Number = 3
	filterConfig  protowire.Number = 4
	chainNamed    protowire.Number = 7
	managerRoutes protowire.Number = 4
	managerEarly  protowire.Number = 52

	matchPrefixes    protowire.Number = 3
	matchProtocols   protowire.Number = 10
	matchServerNames protowire.Number = 11

	routesName       protowire.Number = 1
	routesHosts      protowire.Number = 2
	routesValidate   protowire.Number = 7
	routesRemove     protowire.Number = 8
	routesIgnorePort protowire.Number = 14
	hostName         protowire.Number = 1
	hostDomains      protowire.Number = 2
	hostRoutes       protowire.Number = 3
	hostMatcher      protowire.Number = 21

	anyType         protowire.Number = 1
	anyValue        protowire.Number = 2
	extensionName   protowire.Number = 1
	extensionConfig protowire.Number = 2
	wrappedValue    protowire.Number = 1 // of a StringValue, a UInt32Value
	headerName      protowire.Number = 1
)

// Fields of a Matcher: a list or a tree.
const (
	matcherList     protowire.Number = 1
	listMatchers    protowire.Number = 1
	fieldPredicate  protowire.Number = 1
	fieldMatch      protowire.Number = 2
	singlePredicate protowire.Number = 1
	anyPredicate    protowire.Number = 2
	allPredicates   protowire.Number = 3
	predicateList   protowire.Number = 1
	predicateInput  protowire.Number = 1
	predicateValue  protowire.Number = 2
	predicateCustom protowire.Number = 3
	stringExact     protowire.Number = 1
	stringSuffix    protowire.Number = 3
	stringContains  protowire.Number = 7
	addressRanges   protowire.Number = 1 // of an Ip
	addressStats    protowire.Number = 2
	cidrAddress     protowire.Number = 1
	cidrLength      protowire.Number = 2

	matcherTree protowire.Number = 2
	treeInput   protowire.Number = 1
	treeMap     protowire.Number = 2
	mapEntry    protowire.Number = 1
	entryKey    protowire.Number = 1
	entryValue  protowire.Number = 2
	matchAction protowire.Number = 2
)

// extension is a TypedExtensionConfig.
func extension(name, message string, value []byte) []byte {
	return appendBytes(appendBytes(nil, extensionName, name), extensionConfig, pack(typePrefix+message, value))
}

// pack is an Any.
func pack(url string, value []byte) []byte {
	return appendBytes(appendBytes(nil, anyType, url), anyValue, value)
}

// appendRange appends a CidrRange to those of an Ip.
func appendRange(b []byte, address string, bits int) []byte {
	length := protowire.SizeTag(wrappedValue) + protowire.SizeVarint(uint64(bits))
	size := protowire.SizeTag(cidrAddress) + protowire.SizeBytes(len(address)) + protowire.SizeTag(cidrLength) + protowire.SizeBytes(length)
	b = protowire.AppendVarint(protowire.AppendTag(b, addressRanges, protowire.BytesType), uint64(size))
	b = appendBytes(b, cidrAddress, address)
	b = protowire.AppendVarint(protowire.AppendTag(b, cidrLength, protowire.BytesType), uint64(length))
	return protowire.AppendVarint(protowire.AppendTag(b, wrappedValue, protowire.VarintType), uint64(bits))
}

func appendBytes[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(value))), value...)
}

// backwards writes a message from its last field to its first, so that the length of a field is known when it is written.
type backwards struct {
	b []byte // what is written is at its end
	n int
}

// message is what was written.
func (w *backwards) message() []byte { return slices.Clone(w.b[len(w.b)-w.n:]) }

func (w *backwards) put(v []byte) {
	if w.n+len(v) > len(w.b) {
		larger := make([]byte, 2*len(w.b)+len(v))
		copy(larger[len(larger)-w.n:], w.b[len(w.b)-w.n:])
		w.b = larger
	}
	w.n += len(v)
	copy(w.b[len(w.b)-w.n:], v)
}

// close writes the tag and the length of all that was written since n bytes were.
func (w *backwards) close(number protowire.Number, n int) {
	var head [2 * 10]byte
	w.put(protowire.AppendVarint(protowire.AppendTag(head[:0], number, protowire.BytesType), uint64(w.n-n)))
}

func (w *backwards) bytes(number protowire.Number, value []byte) {
	n := w.n
	w.put(value)
	w.close(number, n)
}
