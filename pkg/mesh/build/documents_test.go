package build

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// se is a ServiceEntry for one TCP port of one host.
func se(name, host string, port int) string {
	return fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %s}\nspec:\n  hosts: [%s]\n  ports: [{number: %d, name: p, protocol: TCP}]\n  resolution: DNS\n", name, host, port)
}

// flow is a ServiceEntry in one line.
func flow(name, host string) string {
	return fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: %s}, spec: {hosts: [%s], ports: [{number: 1, name: p, protocol: TCP}], resolution: DNS}}", name, host)
}

// entryWith is a valid ServiceEntry with spec as its spec.
func entryWith(spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: " + spec + "\n"
}

// checkRefused wants one document, bad at field for reason, and nothing in force.
func checkRefused(t *testing.T, text, field, reason string) {
	t.Helper()
	r, report := load(t, text, testOptions())
	if len(r.Services()) != 0 {
		t.Errorf("%d services in force", len(r.Services()))
	}
	if len(report.Documents) != 1 {
		t.Fatalf("%d documents reported: %+v", len(report.Documents), report.Documents)
	}
	d := report.Documents[0]
	if d.Status != "error" || d.Field != field || !strings.Contains(d.Reason, reason) {
		t.Errorf("status %s, field %q, reason %q; want error, %q, ...%q...", d.Status, d.Field, d.Reason, field, reason)
	}
	if strings.ContainsAny(d.Reason, "\n") {
		t.Errorf("reason has several lines: %q", d.Reason)
	}
}

// patience is how long a test waits for what should take 2 s at most, on a machine that is busy with other things.
const patience = 20 * time.Second
