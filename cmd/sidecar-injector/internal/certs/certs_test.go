package certs

import (
	"crypto/tls"
	"crypto/x509"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

var (
	start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	lives = Lives{CA: 300 * 24 * time.Hour, Leaf: 24 * time.Hour}
	names = []string{"sidecar-injector.understudy-system.svc", "127.0.0.1"}
)

const day = 24 * time.Hour

// step takes a step that has to say what.
func step(t *testing.T, s State, now time.Time, trusted bool, what string) State {
	t.Helper()
	next, got, err := s.Step(now, lives, trusted)
	if err != nil || got != what {
		t.Fatalf("at %s: %q, %v; want %q", now, got, err, what)
	}
	return reread(t, next)
}

// reread is a state as another replica has it.
func reread(t *testing.T, s State) State {
	t.Helper()
	data, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// verify reports whether whoever trusts a bundle accepts the certificate that a state signs.
func verify(t *testing.T, bundle []byte, s State, now time.Time) error {
	t.Helper()
	serving := &Serving{}
	if _, err := serving.Sign(s, names, now, lives); err != nil {
		t.Fatal(err)
	}
	cert, err := serving.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, name := range names {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, DNSName: name}); err != nil {
			return err
		}
	}
	return nil
}

// TestRotation is a year of an authority: at each moment, whoever has the bundle of one step before or after accepts what is signed.
func TestRotation(t *testing.T) {
	s := step(t, State{}, start, false, "the first authority is made")
	step(t, s, start.Add(199*day), false, "")
	now := start.Add(201 * day)
	steps := []struct {
		after   time.Duration
		trusted bool
		what    string
		waiting bool
	}{
		{0, false, "the next authority is made", true},
		{time.Minute, false, "", true},
		{day, true, "the next authority signs", false},
		{12 * time.Hour, true, "", false},
		{12 * time.Hour, false, "the old authority goes", false},
		{day, false, "", false},
	}
	for _, tt := range steps {
		now = now.Add(tt.after)
		next := step(t, s, now, tt.trusted, tt.what)
		if next.Waiting() != tt.waiting || next.Trusts(next.Bundle()) != tt.waiting {
			t.Errorf("%q: waiting %v", tt.what, next.Waiting())
		}
		if tt.what != "the next authority signs" && tt.what != "the old authority goes" {
			if err := verify(t, s.Bundle(), next, now); err != nil {
				t.Errorf("%q: the API server has the bundle from before: %v", tt.what, err)
			}
		}
		if err := verify(t, next.Bundle(), s, now); tt.what != "the old authority goes" && err != nil {
			t.Errorf("%q: a replica still signs as before: %v", tt.what, err)
		}
		if err := verify(t, next.Bundle(), next, now); err != nil {
			t.Errorf("%q: %v", tt.what, err)
		}
		if tt.trusted && tt.what != "" {
			if err := verify(t, s.Bundle(), next, now); err != nil {
				t.Errorf("%q: it was not in the bundle before it signed: %v", tt.what, err)
			}
		}
		s = next
	}
}

// TestClockJumps: whatever the clock says, one step brings an authority that can sign then.
func TestClockJumps(t *testing.T) {
	first := step(t, State{}, start, false, "the first authority is made")
	for _, by := range []time.Duration{400 * day, -400 * day} {
		now := start.Add(by)
		s := step(t, first, now, false, "the authority is not valid now: a new one signs at once")
		if err := verify(t, s.Bundle(), s, now); err != nil {
			t.Errorf("%s: %v", by, err)
		}
		step(t, s, now, false, "")
	}
	// The next one is there: it signs.
	waiting := step(t, first, start.Add(250*day), false, "the next authority is made")
	s := step(t, waiting, start.Add(310*day), false, "the authority has ended: the next one signs at once")
	if err := verify(t, waiting.Bundle(), s, start.Add(310*day)); err != nil {
		t.Error(err)
	}
	// A next one from the future goes, or it would never sign.
	s = step(t, waiting, start, false, "the next authority is not valid now and goes")
	step(t, s, start, false, "")
}

func TestSign(t *testing.T) {
	s, _, err := State{}.Step(start, lives, false)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := State{}.Step(start, lives, false)
	if err != nil {
		t.Fatal(err)
	}
	serving := &Serving{}
	if serving.Check(start) == nil {
		t.Error("there is a certificate before one was signed")
	}
	for _, tt := range []struct {
		state   State
		at      time.Duration
		changed bool
	}{
		{s, 0, true}, {s, 11 * time.Hour, false}, {s, 13 * time.Hour, true}, {s, 13 * time.Hour, false},
		{s, 5 * day, true}, {s, time.Minute, true}, // the clock went back
		{other, 2 * time.Minute, true}, {other, 3 * time.Minute, false},
	} {
		now := start.Add(tt.at)
		changed, err := serving.Sign(tt.state, names, now, lives)
		if err != nil || changed != tt.changed || serving.Check(now) != nil {
			t.Errorf("at %s: %v, %v, %v; want %v", tt.at, changed, err, serving.Check(now), tt.changed)
		}
	}
	if _, err := serving.Sign(s, names, start.Add(1000*day), lives); err == nil {
		t.Error("an authority that has ended has signed")
	}
	if serving.Check(start.Add(1000*day)) == nil {
		t.Error("a certificate that has ended is said to be valid")
	}
}

func TestParseRefuses(t *testing.T) {
	s := step(t, State{}, start, false, "the first authority is made")
	other := step(t, State{}, start, false, "the first authority is made")
	good, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Data()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string][]byte){
		"no key":             func(d map[string][]byte) { delete(d, keyCurrentKey) },
		"another's key":      func(d map[string][]byte) { d[keyCurrentKey] = foreign[keyCurrentKey] },
		"a key that is none": func(d map[string][]byte) { d[keyCurrentKey] = []byte("x") },
		"no certificate":     func(d map[string][]byte) { d[keyCurrentCert] = []byte("x") },
		"two certificates":   func(d map[string][]byte) { d[keyCurrentCert] = slices.Repeat(d[keyCurrentCert], 2) },
		"old without end":    func(d map[string][]byte) { d[keyOldCerts] = d[keyCurrentCert] },
	} {
		data := maps.Clone(good)
		change(data)
		if _, err := Parse(data); err == nil {
			t.Errorf("%s: parsed", name)
		}
	}
}

// TestLoad: files are read again when they change, and what cannot be read leaves what there is.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	write := func() {
		t.Helper()
		s := step(t, State{}, time.Now(), false, "the first authority is made")
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		for file, key := range map[string]string{certFile: keyCurrentCert, keyFile: keyCurrentKey} {
			if err := os.WriteFile(file, data[key], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	serving := &Serving{}
	if _, err := serving.Load(certFile, keyFile); err == nil {
		t.Error("a file that is not there was loaded")
	}
	var before *tls.Certificate
	for range 2 {
		write()
		if changed, err := serving.Load(certFile, keyFile); err != nil || !changed {
			t.Fatalf("new files: %v, %v", changed, err)
		}
		if changed, err := serving.Load(certFile, keyFile); err != nil || changed {
			t.Fatalf("the same files: %v, %v", changed, err)
		}
		now, err := serving.GetCertificate(nil)
		if err != nil || now == before {
			t.Fatalf("the certificate is the one from before, %v", err)
		}
		before = now
	}
	if err := os.WriteFile(keyFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serving.Load(certFile, keyFile); err == nil {
		t.Error("half a key was loaded")
	}
	if now, err := serving.GetCertificate(nil); err != nil || now != before {
		t.Errorf("a bad key took the certificate away: %v", err)
	}
}
