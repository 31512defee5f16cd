package files

import "testing"

// TestNamesOfStateStay: other releases know what a generation tells by these names.
func TestNamesOfStateStay(t *testing.T) {
	for got, want := range map[string]string{stateVIPs: "vips", StateResources: "resources", StateSnapshot: "snapshot", stateFilters: "envoyfilters", stateNames: "names"} {
		if got != want {
			t.Errorf("a component is called %q, want %q", got, want)
		}
	}
	if debugFiles != "/debug/configz" {
		t.Errorf("the page of files is at %s", debugFiles)
	}
}
