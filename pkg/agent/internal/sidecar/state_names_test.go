package sidecar

import "testing"

// TestNamesOfStateStay: other releases know what a generation tells by these names.
func TestNamesOfStateStay(t *testing.T) {
	for got, want := range map[string]string{stateCache: "dns-cache", stateStats: "stats", stateModules: "wasm-modules", stateModuleIndex: "wasm-index"} {
		if got != want {
			t.Errorf("a component is called %q, want %q", got, want)
		}
	}
	if debugNames != "/debug/ndsz" {
		t.Errorf("the page of names is at %s", debugNames)
	}
}
