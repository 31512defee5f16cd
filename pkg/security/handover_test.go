package security

import (
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/security/credential"
	"understudy.mesh/tests/catest"
)

// issued is a credential of a CA, obtained a while ago.
func issued(t *testing.T, ca *catest.CA, id string, age, lifetime time.Duration, roots ...string) *credential.Credential {
	t.Helper()
	key, err := credential.NewKey(credential.Kind{Curve: "P256"})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := key.Request(id)
	if err != nil {
		t.Fatal(err)
	}
	roots = append(roots, ca.Root())
	leaf := ca.Sign(string(csr), lifetime-age, func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(-age) })
	obtained := time.Now().Add(-age)
	parts := credential.Parts{Chain: []byte(leaf + ca.Root()), Key: key.PEM(), Roots: []byte(strings.Join(roots, ""))}
	c, err := credential.New(parts, id, obtained, obtained)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestHandOver: a successor has the certificate, its dates and all roots, and asks for none.
func TestHandOver(t *testing.T) {
	before, ca := catest.New(t, "before"), catest.New(t, "root")
	c := config(nil)
	c.OldRoots = OldRootsLeaf
	first := newManager(t, c)
	if data := first.Export(); data != nil {
		t.Errorf("%d bytes of one who has nothing", len(data))
	}
	first.admit(issued(t, before, workload, time.Hour, 24*time.Hour), time.Now())
	first.admit(issued(t, ca, workload, 0, 24*time.Hour), time.Now())
	if err := first.SetBundle([]string{catest.New(t, "added").Root()}); err != nil {
		t.Fatal(err)
	}
	second := newManager(t, c)
	second.Import(first.Export())
	got, want := second.newest(), first.newest()
	if !got.Obtained.Equal(want.Obtained) || !got.NotAfter.Equal(want.NotAfter) || string(got.Key) != string(want.Key) || string(got.Chain) != string(want.Chain) {
		t.Errorf("%v, want %v", got, want)
	}
	roots, err := second.Get(Roots)
	if err != nil || !strings.Contains(string(roots.Roots), before.Root()) || !strings.Contains(string(roots.Roots), ca.Root()) {
		t.Errorf("roots %q, %v; want both", roots.Roots, err)
	}
	if _, err := second.Get(Workload); err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(keysOf(second.trust.old), keysOf(first.trust.old)) {
		t.Error("the old roots are others")
	}
	if got, want := second.trust.bundle, first.trust.bundle; !reflect.DeepEqual(got, want) {
		t.Errorf("roots that the mesh adds: %q, want %q", got, want)
	}

	c.OldRoots = 0
	third := newManager(t, c)
	third.Import(first.Export())
	if roots, _ := third.Get(Roots); strings.Contains(string(roots.Roots), before.Root()) {
		t.Errorf("roots %q, want none from before: UNDERSTUDY_OLD_ROOTS is 0s", roots.Roots)
	}
}

func keysOf(m map[string]time.Time) map[string]bool {
	keys := make(map[string]bool)
	for k := range m {
		keys[k] = true
	}
	return keys
}

// TestImportOfAnotherClock: a predecessor whose clock was off says that its certificate is from a time at which it cannot be.
func TestImportOfAnotherClock(t *testing.T) {
	first := newManager(t, config(nil))
	first.admit(issued(t, catest.New(t, "root"), workload, 0, time.Hour), time.Now())
	for name, obtained := range map[string]time.Time{"never": {}, "in two hours": time.Now().Add(2 * time.Hour)} {
		var h handedOver
		if err := json.Unmarshal(first.Export(), &h); err != nil {
			t.Fatal(err)
		}
		h.Obtained = obtained
		data, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		second := newManager(t, config(nil))
		second.Import(data)
		if c := second.newest(); c == nil || c.Lifetime() < 59*time.Minute || c.Lifetime() > 70*time.Minute {
			t.Errorf("%s: %v with a lifetime of %v, want about an hour", name, c, c.Lifetime())
		}
	}
}

// TestImportRefuses: what is of no use is left out with one line, which has no key.
func TestImportRefuses(t *testing.T) {
	ca := catest.New(t, "root")
	export := func(c *credential.Credential) []byte {
		m := newManager(t, config(nil))
		m.admit(c, time.Now())
		return m.Export()
	}
	good := export(issued(t, ca, workload, 0, time.Hour))
	edited := func(edit func(*handedOver)) []byte {
		var h handedOver
		if err := json.Unmarshal(good, &h); err != nil {
			t.Fatal(err)
		}
		edit(&h)
		data, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	foreign := export(issued(t, ca, "spiffe://cluster.local/ns/shop/sa/admin", 0, time.Hour))
	cases := map[string]struct {
		data []byte
		want string
	}{
		"garbage":       {[]byte("PRIVATE"), "it cannot be read"},
		"another type":  {[]byte(`{"key":17,"chain":"PRIVATE"}`), "it cannot be read"},
		"too much":      {make([]byte, maxHandedOver+1), "more than"},
		"foreign":       {foreign, "this workload is " + workload},
		"expired":       {export(issued(t, ca, workload, 2*time.Hour, time.Hour)), "has ended at"},
		"without a key": {edited(func(h *handedOver) { h.Key = "" }), "certificate and key"},
		"another's key": {edited(func(h *handedOver) { key, _ := request(t); h.Key = string(key.PEM()) }), "private key does not match"},
		"no roots":      {edited(func(h *handedOver) { h.Roots = nil }), "no certificate in PEM"},
		"another root":  {edited(func(h *handedOver) { h.Roots = []string{catest.New(t, "other").Root()} }), "not signed by"},
		"bad bundle":    {edited(func(h *handedOver) { h.Bundle = []string{"x"} }), "a root that the mesh adds"},
		"bad old root":  {edited(func(h *handedOver) { h.OldRoots = map[string]time.Time{"x": time.Now()} }), "a root from before"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var log syncBuffer
			c := config(nil)
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
			m := newManager(t, c)
			m.Import(tc.data)
			if m.newest() != nil {
				t.Error("it is used")
			}
			if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, tc.want) || strings.Contains(said, "PRIVATE") {
				t.Errorf("log %q, want one line with %q", said, tc.want)
			}
		})
	}
}

// FuzzImport: nothing that a predecessor sends does harm.
func FuzzImport(f *testing.F) {
	f.Add([]byte(`{"chain":"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n","key":"","roots":[""],"oldRoots":{"x":"2026-01-01T00:00:00Z"}}`))
	f.Add([]byte(`{"obtained":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newManager(t, config(nil))
		m.Import(data)
		if m.newest() != nil {
			t.Errorf("%q is a certificate", data)
		}
	})
}
