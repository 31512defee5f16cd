package share

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// A listener that picks a chain by a matcher picks none by FilterChainMatch. Where a port on every address has a listener
// already, its chains are picked by the same things as before, in the order in which Envoy looks at them: the address, the
// most specific prefix first, then the server name, an exact one first, and then the application protocol.

// choice is how one filter chain is picked.
type choice struct {
	bits       int    // of its prefixes, which are all of one length; -1 without
	ranges     []byte // of an Ip
	names      []string
	protocols  []string
	chain      string
	exactNames bool
	nameLength int
}

// choices takes the FilterChainMatch from each chain of l, and names those that have no name. ok is false where a chain is
// picked by something else.
func choices(l *listenerv3.Listener) (list []choice, ok bool) {
	used := map[string]bool{}
	for _, c := range append(slices.Clip(l.GetFilterChains()), l.GetDefaultFilterChain()) {
		used[c.GetName()] = true
	}
	for i, c := range l.GetFilterChains() {
		m := c.GetFilterChainMatch()
		known := &listenerv3.FilterChainMatch{PrefixRanges: m.GetPrefixRanges(), ServerNames: m.GetServerNames(), ApplicationProtocols: m.GetApplicationProtocols()}
		if m != nil && !proto.Equal(m, known) || len(m.GetServerNames()) > 1 {
			return nil, false
		}
		if c.Name == "" {
			for n := i; used[c.Name]; n++ {
				c.Name = fmt.Sprintf("%s-%d", l.GetName(), n)
			}
			used[c.Name] = true
		}
		ch := choice{bits: -1, names: m.GetServerNames(), protocols: m.GetApplicationProtocols(), chain: c.GetName()}
		for _, r := range m.GetPrefixRanges() {
			ch.bits = max(ch.bits, int(r.GetPrefixLen().GetValue()))
			ch.ranges = appendRange(ch.ranges, r.GetAddressPrefix(), int(r.GetPrefixLen().GetValue()))
		}
		for _, n := range ch.names {
			ch.exactNames, ch.nameLength = !strings.HasPrefix(n, "*"), len(n)
		}
		c.FilterChainMatch = nil
		list = append(list, ch)
	}
	slices.SortStableFunc(list, func(a, b choice) int {
		return cmp.Or(cmp.Compare(b.bits, a.bits), compareTrue(a.exactNames, b.exactNames), cmp.Compare(b.nameLength, a.nameLength),
			cmp.Compare(len(b.protocols), len(a.protocols)))
	})
	return list, true
}

// compareTrue puts true first.
func compareTrue(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// matcher is an entry of a list of matchers.
func (c choice) matcher() []byte {
	var all [][]byte
	if len(c.ranges) > 0 {
		all = append(all, address(c.ranges))
	}
	for _, n := range c.names {
		if rest, wild := strings.CutPrefix(n, "*"); wild {
			all = append(all, text(serverNameInput, stringSuffix, rest))
		} else {
			all = append(all, text(serverNameInput, stringExact, n))
		}
	}
	if len(c.protocols) > 0 {
		var any [][]byte
		for _, p := range c.protocols { // Envoy gives them as 'http/1.1','h2'
			any = append(any, text(protocolInput, stringContains, "'"+p+"'"))
		}
		all = append(all, several(anyPredicate, any))
	}
	return entry(several(allPredicates, all), c.chain)
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
