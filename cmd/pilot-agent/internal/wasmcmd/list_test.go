package wasmcmd

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
)

// TestPrint wants each filter on one line, with what becomes of its traffic, and with -v all that is known.
func TestPrint(t *testing.T) {
	since := time.Now().Add(-time.Minute)
	reports, err := json.Marshal([]ecds.Report{
		{Name: "a", Document: "EnvoyFilter ns/a", Phase: "InForce", From: "file:///a", SHA256: strings.Repeat("ab", 32), Digest: "cd", Size: 7, Since: since},
		{Name: "b", Document: "WasmPlugin ns/b", Phase: "Failed", From: "example.com/b:v1", Instead: "deny", Reason: "401", Since: since, NextTry: since},
		{Name: "c", Phase: "Pending", Instead: "allow", Patches: []envoyfilter.PatchReport{
			{ApplyTo: "HTTP_FILTER", Operation: "INSERT_FIRST", Result: envoyfilter.Applied, Listeners: 12, Names: []string{"virtualInbound", "0.0.0.0_80"}},
			{ApplyTo: "HTTP_FILTER", Operation: "MERGE", Result: envoyfilter.Unmatched, Reason: "no listener is"},
		}},
		{Name: "WasmPlugin ns/d", Phase: ecds.Unused, Reason: "not for this pod"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var table, all, none bytes.Buffer
	if err := printFilters(&table, json.NewDecoder(bytes.NewReader(reports))); err != nil {
		t.Fatal(err)
	}
	if err := printAll(&all, json.NewDecoder(bytes.NewReader(reports))); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"abababababab  is filtered ", "is refused ", "401", "passes unfiltered  - ", "WasmPlugin ns/d  Unused   -             -                  -         not for this pod"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, table.String())
		}
	}
	for _, want := range []string{"document: EnvoyFilter ns/a", "sha256:   " + strings.Repeat("ab", 32), "manifest: cd", "bytes:    7", "next try: ", "traffic:  is refused", "reason:   401", "from:     example.com/b:v1",
		"patch 1:  HTTP_FILTER INSERT_FIRST, applied to virtualInbound, 0.0.0.0_80 and 10 more", "patch 2:  HTTP_FILTER MERGE, unmatched: no listener is"} {
		if !strings.Contains(all.String(), want) {
			t.Errorf("no %q in\n%s", want, all.String())
		}
	}
	if err := printReloaded(&none, json.NewDecoder(strings.NewReader(`{"names":["a"]}`))); err != nil || none.String() != "reloaded a\n" {
		t.Errorf("%q, %v", none.String(), err)
	}
	if printFilters(&none, json.NewDecoder(strings.NewReader("{}"))) == nil || printReloaded(&none, json.NewDecoder(strings.NewReader("["))) == nil {
		t.Error("what is none is read")
	}
}
