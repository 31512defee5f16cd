package mesh

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestClaimsOverTime steps through the life of two documents that want one address.
func TestClaimsOverTime(t *testing.T) {
	at := func(name, address string) string {
		return doc("name: "+name, "hosts: ["+name+".x], addresses: ["+address+"], ports: [{number: 1, name: p}], resolution: DNS")
	}
	dir := t.TempDir()
	s, log := newTestSource(t, dir, testOptions())
	for i, step := range []struct{ text, want string }{
		{at("b", "10.0.0.1"), "b.x:1 | b=ok"},
		{at("b", "10.0.0.1") + at("c", "10.0.0.1"), "b.x:1 | b=ok c=error"},
		{at("b", "10.0.0.2") + at("c", "10.0.0.1"), "b.x:1 c.x:1 | b=ok c=ok"},
		{at("a", "10.0.0.1") + at("b", "10.0.0.2") + at("c", "10.0.0.1"), "a.x:1 b.x:1 | a=ok b=ok c=error"},
		{at("a", "10.0.0.1") + at("b", "10.0.0.2") + strings.Replace(at("c", "10.0.0.1"), "DNS", "NOPE", 1), "a.x:1 b.x:1 | a=ok b=ok c=error"},
		{at("b", "10.0.0.2") + at("c", "10.0.0.1"), "b.x:1 c.x:1 | b=ok c=ok"},
		// A version that cannot be in force beside the others leaves the one before in force,
		{at("b", "10.0.0.2") + at("c", "10.0.0.2"), "b.x:1 c.x:1 | b=ok c=stale"},
		{at("b", "10.0.0.2") + at("c", "10.0.0.2") + at("d", "10.0.0.3"), "b.x:1 c.x:1 d.x:1 | b=ok c=stale d=ok"},
		// of which others take nothing either,
		{at("b", "10.0.0.2") + at("c", "10.0.0.2") + at("d", "10.0.0.1"), "b.x:1 c.x:1 d.x:1 | b=ok c=stale d=stale"},
		// until it cannot be in force itself.
		{at("a", "10.0.0.1") + at("b", "10.0.0.2") + at("c", "10.0.0.2") + at("d", "10.0.0.1"), "a.x:1 b.x:1 d.x:1 | a=ok b=ok c=error d=stale"},
		{at("c", "10.0.0.2") + at("d", "10.0.0.1"), "c.x:1 d.x:1 | c=ok d=ok"},
	} {
		writeFile(t, filepath.Join(dir, "x.yaml"), step.text)
		if _, err := s.Load(); err != nil {
			t.Fatal(err)
		}
		if got := statuses(s); got != step.want {
			t.Errorf("step %d: %q, want %q", i+1, got, step.want)
		}
	}
	for _, line := range []string{"bad document: x.yaml: document 2", "no longer so: x.yaml: document 2"} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log has no %q:\n%s", line, log)
		}
	}
}
