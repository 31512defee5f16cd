package wasm

import (
	"cmp"
	"slices"
	"strings"

	"understudy.mesh/pkg/wasm/internal/host"
	"understudy.mesh/tests/proxywasm"
)

// RefusedError is for tests from outside.
type RefusedError = refusedError

// HostFunctions are those that Check takes, in the modules in which it takes them.
func HostFunctions() (all []proxywasm.Import) {
	for _, module := range []string{"env", "wasi_snapshot_preview1", "wasi_unstable"} {
		for _, name := range host.Functions(module) {
			all = append(all, proxywasm.Import{Module: module, Name: name})
		}
	}
	return all
}

// status is what became of each source, by name.
func (s *Store) status() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []State
	for _, st := range s.states {
		all = append(all, *st)
	}
	slices.SortFunc(all, func(a, b State) int { return cmp.Or(strings.Compare(a.From, b.From), a.Since.Compare(b.Since)) })
	return all
}
