package security

import (
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/catest"
)

// TestBundle: what the mesh's configuration adds to the roots is trusted besides, once each, and no longer when it has gone.
func TestBundle(t *testing.T) {
	ca, a, b := catest.New(t, "root"), catest.New(t, "a"), catest.New(t, "b")
	m := newManager(t, config(nil))
	if err := m.SetBundle([]string{a.Root()}); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Get(Roots); err == nil {
		t.Errorf("roots %q before there is a certificate: Envoy would refuse the peers of the CA", s.Roots)
	}
	m.admit(issued(t, ca, workload, 0, time.Hour), time.Now())
	expect := func(want ...*catest.CA) {
		t.Helper()
		s, err := m.Get(Roots)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(s.Roots), "BEGIN CERTIFICATE"); n != len(want) {
			t.Errorf("%d roots, want %d", n, len(want))
		}
		for _, w := range want {
			if !strings.Contains(string(s.Roots), w.Root()) {
				t.Errorf("a root is missing in %q", s.Roots)
			}
		}
	}
	expect(ca, a)
	changed := m.Changed()
	if err := m.SetBundle([]string{strings.TrimSpace(b.Root()), a.Root(), ca.Root(), a.Root()}); err != nil {
		t.Fatal(err)
	}
	expect(ca, a, b)
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	changed = m.Changed()
	if err := m.SetBundle([]string{a.Root(), "nonsense", b.Root(), ca.Root()}); err != nil { // text between certificates is allowed
		t.Fatal(err)
	}
	select {
	case <-changed:
		t.Error("told of the same roots in another order")
	default:
	}
	if err := m.SetBundle([]string{"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b.Root()}); err == nil {
		t.Error("no word of a bad root")
	}
	expect(ca, b)
	if err := m.SetBundle(nil); err != nil {
		t.Fatal(err)
	}
	expect(ca)
}

// TestBundleAndMountedRoots: it is added to roots in files, too.
func TestBundleAndMountedRoots(t *testing.T) {
	ca, a := catest.New(t, "root"), catest.New(t, "a")
	directory := t.TempDir()
	write(t, directory, RootFile, ca.Root())
	c := config(nil)
	c.Mounted = []string{directory}
	m := newManager(t, c)
	if err := m.SetBundle([]string{a.Root()}); err != nil {
		t.Fatal(err)
	}
	if s, err := m.Get(Roots); err != nil || !strings.Contains(string(s.Roots), ca.Root()) || !strings.Contains(string(s.Roots), a.Root()) {
		t.Errorf("%q, %v; want both roots", s.Roots, err)
	}
}

// TestRootReturns: a root that was old and is that of the newest certificate does not go any more.
func TestRootReturns(t *testing.T) {
	now := time.Now()
	var roots trust
	roots.replace([]string{"a"}, now)
	roots.replace([]string{"b"}, now.Add(time.Hour))
	if roots.replace([]string{"a"}, now.Add(2*time.Hour)) {
		t.Error("a is new, though Envoy has it")
	}
	if next := roots.next(); !next.Equal(now.Add(2 * time.Hour)) {
		t.Errorf("the next root goes at %v, want b in two hours", next)
	}
	roots.expire(now.Add(3 * time.Hour))
	if got := strings.Join(roots.roots(), ""); got != "a" {
		t.Errorf("%q, want a", got)
	}
}

// TestRootsAreSorted: the same set of roots is the same text, whatever came first.
func TestRootsAreSorted(t *testing.T) {
	a := trust{current: []string{"b", "a"}, old: map[string]time.Time{"d": {}, "a": {}}, bundle: []string{"c"}}
	b := trust{current: []string{"c"}, old: map[string]time.Time{"a": {}, "b": {}}, bundle: []string{"d", "d"}}
	if got, want := strings.Join(a.roots(), ""), "abcd"; got != want || strings.Join(b.roots(), "") != want {
		t.Errorf("%q and %q, want %q", got, b.roots(), want)
	}
}
