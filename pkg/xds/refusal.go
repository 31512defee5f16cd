package xds

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.mesh/pkg/xds/internal/refusal"
)

// maxReasons bounds the reasons of an error; it says how many more there are.
const maxReasons = 10

// RejectedError says what Envoy refuses of a configuration; everything else of it is
// in force.
type RejectedError struct {
	version uint64
	// Resources are all that Envoy refuses, in the order of their types.
	Resources []ID
	// Kept are those of Resources of which Envoy has an earlier version, the one that it
	// took last. The others it does not have at all.
	Kept []ID
	// Reasons are Envoy's, each with the kind and the name of the resource; at most ten.
	Reasons []string
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("Envoy refused configuration version %d: %s", e.version, strings.Join(e.Reasons, "; "))
}

// Missing are those of Resources that Envoy does not have in any version.
func (e *RejectedError) Missing() []ID {
	kept := make(map[ID]bool, len(e.Kept))
	for _, id := range e.Kept {
		kept[id] = true
	}
	return slices.DeleteFunc(slices.Clone(e.Resources), func(id ID) bool { return kept[id] })
}

// rejection is why Envoy refused a resource.
type rejection struct {
	reason string
	// final says that Envoy refused the resource as such, which it will do as often as it is
	// sent. Else the cause may go: an address in use.
	final bool
}

// accept notes names that Envoy took.
func (s *subscription) accept(names []string) {
	for _, name := range names {
		delete(s.rejected, name)
		if it, has := s.known[name]; has { // else it was removed
			s.known[name] = item{it.version, true}
		}
	}
}

// refuse takes in a NACK of a response with names.
func (s *subscription) refuse(names []string, message string) {
	blamed := refusal.BlamedBy(message, names)
	final := len(blamed) == 0 && len(names) == 1
	if final {
		blamed = map[string]string{names[0]: message}
	}
	for name, reason := range blamed {
		s.rejected[name] = rejection{refusal.Shorten(reason), final}
	}
	rest := slices.DeleteFunc(names, func(name string) bool { _, is := blamed[name]; return is })
	if len(blamed) > 0 && !strings.HasSuffix(message, refusal.Truncated) {
		s.accept(rest)
	} else {
		s.part(rest)
	}
}

// part has names sent again, in two responses.
func (s *subscription) part(names []string) {
	for _, name := range names {
		it, has := s.known[name]
		s.known[name] = item{0, it.held || !has} // a removal that did not happen
	}
	for _, half := range [][]string{names[:len(names)/2], names[len(names)/2:]} {
		if len(half) > 0 {
			s.parts = append(s.parts, half)
		}
	}
}

// retry makes the next push send again what Envoy refused, whether it changes or not,
// unless it would refuse it for ever.
func (s *subscription) retry() {
	for name, r := range s.rejected {
		if _, known := s.known[name]; !known { // removed since, or no longer asked for
			delete(s.rejected, name)
		} else if !r.final {
			s.forget(name)
		}
	}
}

// rejected is what Envoy refuses of the state that was pushed last; nil when it took everything.
func (st *stream) rejected() *RejectedError {
	e := &RejectedError{version: st.pushed.version}
	for _, url := range st.server.order {
		sub := cmp.Or(st.subs[url], &subscription{}) // of a type that nothing names
		for _, name := range slices.Sorted(maps.Keys(sub.rejected)) {
			it, known := sub.known[name]
			if !known {
				continue // no longer asked for
			}
			e.Resources = append(e.Resources, ID{url, name})
			if it.held {
				e.Kept = append(e.Kept, ID{url, name})
			}
			if len(e.Resources) <= maxReasons {
				e.Reasons = append(e.Reasons, fmt.Sprintf("%s %q: %s", kindOf(url), name, sub.rejected[name].reason))
			}
		}
	}
	if len(e.Resources) == 0 {
		return nil
	}
	if more := len(e.Resources) - maxReasons; more > 0 {
		e.Reasons = append(e.Reasons, fmt.Sprintf("and %d more", more))
	}
	return e
}

func kindOf(url string) string { return url[strings.LastIndexByte(url, '.')+1:] }
