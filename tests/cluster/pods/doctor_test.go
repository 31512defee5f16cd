package pods

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/golden"
)

// doctorReport is what `doctor istiod -o json` prints.
type doctorReport struct {
	Right    bool
	Findings []struct {
		Check, State, Detail string
		Extensions           []string
	}
}

// defaultExtensions is what an istiod with nothing switched off needs: istio marks what a stock Envoy lacks.
const defaultExtensions = "default-istiod.golden"

// TestDoctorIstiodJob runs docs/istiod.md's Job to the letter, whose exit status is the answer, and then one that asks an istiod with
// nothing switched off: which extensions its configuration needs, and which of them a stock Envoy lacks.
func TestDoctorIstiodJob(t *testing.T) {
	ns := shared.Namespace(t, "doctor-istiod")
	blocks := blocksOf(t, "docs/istiod.md", "Where to look", "yaml")
	if len(blocks) != 1 {
		t.Fatalf("docs/istiod.md has %d manifests", len(blocks))
	}
	ns.Apply(t, join(hosts, blocks[0]))
	ns.Wait(t, podLimit, "condition=Complete", "job/doctor-istiod")
	t.Log(ns.Kubectl(t, "logs", "job/doctor-istiod"))

	if err := shared.Start(t.Context(), cluster.DefaultIstiod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = shared.Stop(t.Context(), cluster.DefaultIstiod, syscall.SIGKILL) })
	ns.Apply(t, edit(t, blocks[0], func(o object) {
		o["metadata"].(object)["name"] = "default"
		container := o["spec"].(object)["template"].(object)["spec"].(object)["containers"].([]any)[0].(object)
		container["args"] = []any{"doctor", "istiod", "-o", "json"}
		container["env"] = append(container["env"].([]any),
			object{"name": "PROXY_CONFIG", "value": "{discoveryAddress: '" + cluster.DefaultIstiodAddress + "'}"}, object{"name": "ISTIOD_SAN", "value": "istiod.istio-system.svc"})
	}))
	ns.Wait(t, podLimit, "condition=Failed", "job/default")
	text := ns.Kubectl(t, "logs", "job/default")
	var report doctorReport
	// A container's log has both of its outputs, in any order: the line of standard error is no part of the report.
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.HasPrefix(line, "pilot-agent: ") })
	if err := json.Unmarshal([]byte(strings.Join(lines, "\n")), &report); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	var list strings.Builder
	var needs []string
	for _, f := range report.Findings {
		switch {
		case f.Check == "push":
			needs = f.Extensions
		case f.Check == "extensions" && f.State == "failed":
			_, lacks, _ := strings.Cut(f.Detail, " lacks ")
			lacks, _, _ = strings.Cut(lacks, ": ")
			for _, name := range needs {
				mark := "stock"
				for _, lacking := range strings.Split(lacks, ", ") {
					if name == lacking {
						mark = "istio"
					}
				}
				list.WriteString(mark + " " + name + "\n")
			}
		case f.State == "failed":
			t.Errorf("%s: %s", f.Check, f.Detail)
		}
	}
	golden.Check(t, filepath.Join("testdata", defaultExtensions), list.String())
}
