package share

import (
	"cmp"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// A listener that picks a chain by a matcher picks none by FilterChainMatch. Where a port on every address has a listener
// already, its chains are picked by the same things as before, in the order in which Envoy looks at them: the address, the
// most specific prefix first, then the server name, an exact one first, and then the application protocol.

// choice is how one filter chain is picked.
type choice struct {
	name, chain []byte // the chain, without what picks it
	bits        int    // of its longest prefix; -1 without
	ranges      []byte // of an Ip
	serverName  string
	protocols   []string
}

// newChoice takes the FilterChainMatch from a chain. ok is false where that is about something else.
func newChoice(chain []byte) (c choice, ok bool) {
	c.bits = -1
	ok = fields(chain, func(number protowire.Number, whole, value []byte, _ uint64) bool {
		switch number {
		case chainMatch:
			return fields(value, func(number protowire.Number, _, value []byte, _ uint64) bool { return c.match(number, value) })
		case chainNamed:
			c.name = value
			return true
		}
		c.chain = append(c.chain, whole...)
		return true
	})
	return c, ok
}

// match takes in a field of a FilterChainMatch.
func (c *choice) match(number protowire.Number, value []byte) bool {
	switch number {
	case matchPrefixes:
		host, bits := "", 0
		ok := fields(value, func(number protowire.Number, _, value []byte, _ uint64) bool {
			if number == cidrAddress {
				host = string(value)
				return true
			}
			return fields(value, func(_ protowire.Number, _, _ []byte, n uint64) bool {
				bits = int(n)
				return true
			})
		})
		c.bits, c.ranges = max(c.bits, bits), appendRange(c.ranges, host, bits)
		return ok
	case matchServerNames:
		first := c.serverName == ""
		c.serverName = string(value)
		return first
	case matchProtocols:
		c.protocols = append(c.protocols, string(value))
		return true
	}
	return false
}

// choices are those of a listener's chains, each with a name.
func choices(listener string, chains [][]byte) (list []choice, ok bool) {
	used := map[string]bool{}
	for _, chain := range chains {
		c, ok := newChoice(chain)
		all := c.bits < 0 && c.serverName == "" && len(c.protocols) == 0
		if !ok || all || used[string(c.name)] {
			return nil, false
		}
		if len(c.name) > 0 {
			used[string(c.name)] = true
		}
		list = append(list, c)
	}
	for i := range list {
		for n := i; len(list[i].name) == 0; n++ {
			if name := fmt.Sprintf("%s-%d", listener, n); !used[name] {
				list[i].name, used[name] = []byte(name), true
			}
		}
		list[i].chain = appendBytes(list[i].chain, chainNamed, list[i].name)
	}
	return list, true
}

// compare is the order in which Envoy tries them.
func (c choice) compare(d choice) int {
	exact := func(c choice) int {
		if c.serverName == "" || strings.HasPrefix(c.serverName, "*") {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(d.bits, c.bits), cmp.Compare(exact(d), exact(c)), cmp.Compare(len(d.serverName), len(c.serverName)),
		cmp.Compare(len(d.protocols), len(c.protocols)))
}

// matcher is an entry of a list of matchers.
func (c choice) matcher() []byte {
	var all [][]byte
	if len(c.ranges) > 0 {
		all = append(all, address(c.ranges))
	}
	if rest, wild := strings.CutPrefix(c.serverName, "*"); wild {
		all = append(all, text(serverNameInput, stringSuffix, rest))
	} else if c.serverName != "" {
		all = append(all, text(serverNameInput, stringExact, c.serverName))
	}
	if len(c.protocols) > 0 {
		var any [][]byte
		for _, p := range c.protocols { // Envoy gives them as 'http/1.1','h2'
			any = append(any, text(protocolInput, stringContains, "'"+p+"'"))
		}
		all = append(all, several(anyPredicate, any))
	}
	return entry(several(allPredicates, all), string(c.name))
}

// several is a predicate of predicates; of one it is that.
func several(kind protowire.Number, of [][]byte) []byte {
	if len(of) == 1 {
		return of[0]
	}
	var list []byte
	for _, p := range of {
		list = appendBytes(list, predicateList, p)
	}
	return appendBytes(nil, kind, list)
}

// address is a predicate about the destination address, of whose ranges Envoy makes a trie.
func address(ranges []byte) []byte {
	ip := extension("address", addressMatcher, appendBytes(ranges, addressStats, "destination"))
	single := appendBytes(appendBytes(nil, predicateInput, extension("destination", destinationInput, nil)), predicateCustom, ip)
	return appendBytes(nil, singlePredicate, single)
}

// text is a predicate about a string.
func text(input string, how protowire.Number, value string) []byte {
	single := appendBytes(nil, predicateInput, extension("connection", input, nil))
	return appendBytes(nil, singlePredicate, appendBytes(single, predicateValue, appendBytes(nil, how, value)))
}

// entry picks a filter chain where a predicate is true; the first entry of a list counts.
func entry(predicate []byte, chain string) []byte {
	action := appendBytes(nil, matchAction, extension(chain, stringMessage, appendBytes(nil, wrappedValue, chain)))
	return appendBytes(appendBytes(nil, fieldPredicate, predicate), fieldMatch, action)
}
