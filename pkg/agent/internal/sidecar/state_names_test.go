package sidecar

import "testing"

// TestNamesOfStateStay: other releases know what a generation tells by these names.
func TestNamesOfStateStay(t *testing.T) {
	for got, want := range map[string]string{stateVIPs: "vips", stateCache: "dns-cache", stateResources: "resources", stateStats: "stats"} {
		if got != want {
			t.Errorf("a component is called %q, want %q", got, want)
		}
	}
	if debugNames != "/debug/ndsz" || debugFiles != "/debug/configz" {
		t.Errorf("pages are at %s and %s", debugNames, debugFiles)
	}
}
