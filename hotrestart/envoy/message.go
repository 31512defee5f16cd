package envoy

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// The numbers of envoy.HotRestartMessage and of its parts, which are what the protocol
// is: nothing of it is generated here, because it is small and does not change.
const (
	fieldRequest      protowire.Number = 1
	fieldReply        protowire.Number = 2
	fieldUnrecognized protowire.Number = 3

	fieldSocketAddress   protowire.Number = 1 // Request.PassListenSocket
	fieldSocketWorker    protowire.Number = 2
	fieldSocketNamespace protowire.Number = 3
	fieldSocketFD        protowire.Number = 1 // Reply.PassListenSocket
	fieldStartTime       protowire.Number = 1 // Reply.ShutdownAdmin
	fieldReusePort       protowire.Number = 2
)

// kind is the number of a Request's or a Reply's only field.
type kind protowire.Number

const (
	kindListenSocket   kind = 1
	kindShutdownAdmin  kind = 2
	kindStats          kind = 3
	kindDrainListeners kind = 4 // requests only, from here on; none is answered
	kindTerminate      kind = 5
	kindForwardedUDP   kind = 6
	kindTestConnection kind = 7
)

// kindNames are the names that Envoy's schema has.
var kindNames = [...]string{
	kindListenSocket: "pass_listen_socket", kindShutdownAdmin: "shutdown_admin", kindStats: "stats", kindDrainListeners: "drain_listeners",
	kindTerminate: "terminate", kindForwardedUDP: "forwarded_udp_packet", kindTestConnection: "test_connection",
}

func (k kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("message %d", int32(k))
}

// request is what a child asks. The fields but kind are those of pass_listen_socket.
type request struct {
	kind      kind
	address   string
	worker    uint32
	namespace string
}

// reply is what a parent answers. kind is 0 when it did not recognize the request.
type reply struct {
	kind      kind
	hasFD     bool   // pass_listen_socket: fd was not -1
	startTime uint64 // shutdown_admin, seconds
	stats     []byte // stats, serialized
}

// errNoRequest says that a message holds no request.
var errNoRequest = errors.New("the message is no request")

func (r request) marshal() []byte {
	var body []byte
	if r.kind == kindListenSocket {
		body = appendBytes(body, fieldSocketAddress, []byte(r.address))
		body = appendVarint(body, fieldSocketWorker, uint64(r.worker))
		if r.namespace != "" {
			body = appendBytes(body, fieldSocketNamespace, []byte(r.namespace))
		}
	}
	return appendBytes(nil, fieldRequest, appendBytes(nil, protowire.Number(r.kind), body))
}

func parseRequest(message []byte) (request, error) {
	k, body, err := parseEnvelope(message, fieldRequest)
	if err != nil {
		return request{}, err
	}
	if k == 0 {
		return request{}, errNoRequest
	}
	r := request{kind: k}
	if k != kindListenSocket {
		return r, nil
	}
	err = eachField(body, func(f field) error {
		switch {
		case f.is(fieldSocketAddress, protowire.BytesType):
			r.address = string(f.bytes)
		case f.is(fieldSocketWorker, protowire.VarintType):
			r.worker = uint32(f.value)
		case f.is(fieldSocketNamespace, protowire.BytesType):
			r.namespace = string(f.bytes)
		}
		return nil
	})
	return r, err
}

func marshalReply(k kind, body []byte) []byte {
	return appendBytes(nil, fieldReply, appendBytes(nil, protowire.Number(k), body))
}

// marshalSocketReply answers pass_listen_socket; the number itself means nothing to the
// receiver, unless it is -1: none.
func marshalSocketReply(fd int) []byte {
	// An int32 is sign-extended to 64 bits (protobuf encoding).
	return marshalReply(kindListenSocket, appendVarint(nil, fieldSocketFD, uint64(int64(fd))))
}

// marshalAdminReply answers shutdown_admin. SO_REUSEPORT by default is what every Envoy
// on Linux has; an Envoy adopts what its parent says.
func marshalAdminReply(start time.Time) []byte {
	body := appendVarint(nil, fieldStartTime, uint64(max(start.Unix(), 0)))
	return marshalReply(kindShutdownAdmin, appendVarint(body, fieldReusePort, 1))
}

func marshalUnrecognized() []byte { return appendVarint(nil, fieldUnrecognized, 1) }

func parseReply(message []byte) (reply, error) {
	k, body, err := parseEnvelope(message, fieldReply)
	if err != nil {
		return reply{}, err
	}
	r := reply{kind: k}
	switch k {
	case kindStats:
		r.stats = body
	case kindListenSocket:
		r.hasFD = true // 0 is a descriptor, and protobuf's default
		err = eachField(body, func(f field) error {
			if f.is(fieldSocketFD, protowire.VarintType) {
				r.hasFD = int32(f.value) != -1
			}
			return nil
		})
	case kindShutdownAdmin:
		err = eachField(body, func(f field) error {
			if f.is(fieldStartTime, protowire.VarintType) {
				r.startTime = f.value
			}
			return nil
		})
	}
	return r, err
}

// parseEnvelope opens a HotRestartMessage's Request or Reply, and finds the field that
// it consists of; kind is 0 when there is none. As protobuf has it, the last one counts.
func parseEnvelope(message []byte, wanted protowire.Number) (k kind, body []byte, err error) {
	err = eachField(message, func(outer field) error {
		if !outer.is(wanted, protowire.BytesType) {
			return nil
		}
		return eachField(outer.bytes, func(inner field) error {
			if inner.wire == protowire.BytesType {
				k, body = kind(inner.number), inner.bytes
			}
			return nil
		})
	})
	return k, body, err
}

// field is one field of a message: value if it is a varint, bytes if it is
// length-delimited, neither otherwise.
type field struct {
	number protowire.Number
	wire   protowire.Type
	value  uint64
	bytes  []byte
	raw    []byte // the whole field, tag included
}

func (f field) is(number protowire.Number, wire protowire.Type) bool {
	return f.number == number && f.wire == wire
}

// eachField calls visit for every field of a message, in order, until it fails.
func eachField(message []byte, visit func(field) error) error {
	for len(message) > 0 {
		number, wire, tag := protowire.ConsumeTag(message)
		if tag < 0 {
			return fmt.Errorf("decode a hot-restart message: %w", protowire.ParseError(tag))
		}
		size := protowire.ConsumeFieldValue(number, wire, message[tag:])
		if size < 0 {
			return fmt.Errorf("decode field %d of a hot-restart message: %w", number, protowire.ParseError(size))
		}
		f := field{number: number, wire: wire, raw: message[:tag+size]}
		switch wire {
		case protowire.VarintType:
			f.value, _ = protowire.ConsumeVarint(message[tag:])
		case protowire.BytesType:
			f.bytes, _ = protowire.ConsumeBytes(message[tag:])
		}
		if err := visit(f); err != nil {
			return err
		}
		message = message[tag+size:]
	}
	return nil
}

func appendBytes(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}

func appendVarint(b []byte, number protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), value)
}
