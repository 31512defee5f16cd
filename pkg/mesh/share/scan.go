package share

import (
	"hash/fnv"
	"net/netip"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/xds"
)

// scan finds out whether a listener is a member of its port: it binds nothing, and of its one chain the last filter is a
// connection manager with one route for all hosts. Anything else about it is its template, and what scan does not expect
// leaves the listener as it is.
func scan(r *xds.Stored) (*member, error) {
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	m := &member{name: r.Name, resource: r, part: unplaced}
	rest := fnv.New64a()
	s := scanner{rest: rest.Write}
	ok := s.message(body, func(number protowire.Number, value []byte, n uint64) bool {
		switch number {
		case listenerName:
			return true
		case listenerAddress:
			return s.address(value, m)
		case listenerAdditional:
			return s.message(value, func(number protowire.Number, value []byte, _ uint64) bool {
				return number == additionalAddress && s.address(value, m)
			})
		case listenerDirection:
			return n == uint64(corev3.TrafficDirection_OUTBOUND)
		case listenerBind:
			s.unbound = len(value) == 0
			return s.unbound
		case listenerChains:
			s.chains++
			return s.chain(value)
		}
		return false
	})
	if !ok || !s.unbound || s.chains != 1 || s.route == nil || len(m.addrs) == 0 {
		return nil, nil
	}
	m.template, m.route = rest.Sum64(), spanOf(body, s.route)
	return m, nil
}

// scanner walks a listener without making objects of it: there are ten thousand of them.
type scanner struct {
	rest    func([]byte) (int, error) // takes what is the template's
	unbound bool
	chains  int
	route   []byte // nil: none was found
}

// message calls visit for each field, until it says no; ok is false then, and where b is no message.
func (s *scanner) message(b []byte, visit func(number protowire.Number, value []byte, n uint64) bool) (ok bool) {
	return fields(b, func(number protowire.Number, _, value []byte, n uint64) bool { return visit(number, value, n) })
}

// fields calls visit for each field with its bytes, whole and without its tag, or its number.
func fields(b []byte, visit func(number protowire.Number, whole, value []byte, n uint64) bool) (ok bool) {
	for len(b) > 0 {
		number, kind, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return false
		}
		size := protowire.ConsumeFieldValue(number, kind, b[tag:])
		if size < 0 {
			return false
		}
		whole, value, n := b[:tag+size], b[tag:tag+size], uint64(0)
		switch kind {
		case protowire.BytesType:
			value, _ = protowire.ConsumeBytes(value)
		case protowire.VarintType:
			n, _ = protowire.ConsumeVarint(value)
		}
		if !visit(number, whole, value, n) {
			return false
		}
		b = b[tag+size:]
	}
	return true
}

func (s *scanner) address(b []byte, m *member) bool {
	var addr netip.Addr
	var port uint64
	ok := s.message(b, func(number protowire.Number, value []byte, _ uint64) bool {
		return number == socketAddress && s.message(value, func(number protowire.Number, value []byte, n uint64) bool {
			switch number {
			case socketHost:
				var err error
				addr, err = netip.ParseAddr(string(value))
				return err == nil
			case socketPort:
				port = n
				return n <= 65535
			}
			return false
		})
	})
	if !ok || !addr.IsValid() || addr.IsUnspecified() || (m.port != 0 && m.port != uint16(port)) {
		return false
	}
	m.port, m.addrs = uint16(port), append(m.addrs, addr)
	return port != 0
}

func (s *scanner) chain(b []byte) bool {
	return s.message(b, func(number protowire.Number, value []byte, _ uint64) bool {
		switch number {
		case chainMatch:
			return len(value) == 0
		case chainFilters:
			if s.route != nil {
				return false // a filter behind the one that ends the chain
			}
			return s.filter(value)
		}
		return false
	})
}

func (s *scanner) filter(b []byte) bool {
	return fields(b, func(number protowire.Number, whole, value []byte, _ uint64) bool {
		if number == filterConfig {
			url, config, ok := unpack(value)
			if ok && url == managerType {
				return s.manager(config)
			}
		}
		_, _ = s.rest(whole)
		return true
	})
}

// unpack reads an Any.
func unpack(b []byte) (url string, value []byte, ok bool) {
	ok = fields(b, func(number protowire.Number, _, field []byte, _ uint64) bool {
		switch number {
		case anyType:
			url = string(field)
		case anyValue:
			value = field
		default:
			return false
		}
		return true
	})
	return url, value, ok
}

func (s *scanner) manager(b []byte) bool {
	return fields(b, func(number protowire.Number, whole, value []byte, _ uint64) bool {
		if number == managerRoutes {
			return s.route == nil && s.routes(value)
		}
		_, _ = s.rest(whole)
		return true
	})
}

func (s *scanner) routes(b []byte) bool {
	hosts := 0
	return s.message(b, func(number protowire.Number, value []byte, n uint64) bool {
		switch number {
		case routesName, routesIgnorePort:
			return true
		case routesValidate:
			return len(value) == 0 // false
		case routesHosts:
			hosts++
			return hosts == 1 && s.host(value)
		}
		return false
	})
}

func (s *scanner) host(b []byte) bool {
	return s.message(b, func(number protowire.Number, value []byte, _ uint64) bool {
		switch number {
		case hostName:
			return true
		case hostDomains:
			return string(value) == "*"
		case hostRoutes:
			first := s.route == nil
			s.route = value
			return first
		}
		return false
	})
}
