package security

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"understudy.mesh/tests/catest"
)

// bench is a renewal in a bubble of its own time, with a CA that is a function.
type bench struct {
	m    *Manager
	log  syncBuffer
	stop func()

	mu   sync.Mutex
	ca   *catest.CA
	down bool
	keys []string // the public key of each request
}

// newBench starts one. Whoever calls it calls stop before the bubble ends.
func newBench(t *testing.T, c Config) *bench {
	t.Helper()
	b := &bench{ca: catest.New(t, "root")}
	c.Log = slog.New(slog.NewTextHandler(&b.log, nil))
	b.m = newManager(t, c)
	return b
}

func (b *bench) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { newRenewal(b.m, b.sign).run(ctx); close(done) }()
	b.stop = func() { cancel(); <-done }
	synctest.Wait()
}

func (b *bench) sign(_ context.Context, csr []byte) ([]string, error) {
	block, _ := pem.Decode(csr)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.keys = append(b.keys, string(request.RawSubjectPublicKeyInfo))
	if b.down {
		return nil, errors.New("connection refused")
	}
	return []string{b.ca.Sign(string(csr), b.m.c.Lifetime, nil), b.ca.Root()}, nil
}

// asked are the requests so far.
func (b *bench) asked() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.keys)
}

// set has the CA be down, or up.
func (b *bench) set(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

// renew gives the CA another root.
func (b *bench) renew(ca *catest.CA) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ca = ca
}

// pass lets time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *bench) get(t *testing.T, name string) Secret {
	t.Helper()
	secret, err := b.m.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// TestRotation: another certificate comes at a half of the lifetime, and the one before serves until then.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		c.GraceJitter = 0.01
		b := newBench(t, c)
		b.start()
		defer func() { b.stop() }()
		first := b.get(t, Workload)
		pass(11*time.Hour + 45*time.Minute)
		if string(b.get(t, Workload).Chain) != string(first.Chain) || len(b.asked()) != 1 {
			t.Errorf("%d requests before a half of the lifetime, want 1", len(b.asked()))
		}
		changed := b.m.Changed()
		pass(30 * time.Minute)
		second := b.get(t, Workload)
		if string(second.Chain) == string(first.Chain) || len(b.asked()) != 2 {
			t.Errorf("%d requests after a half of the lifetime, want 2 and another certificate", len(b.asked()))
		}
		if b.asked()[0] == b.asked()[1] {
			t.Error("the key is the one before")
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told")
		}
	})
}

// TestShortLifetime: two requests a lifetime, not more, though a certificate begins before it was asked for.
func TestShortLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		c.Lifetime, c.GraceJitter = time.Minute, 0.01
		b := newBench(t, c)
		b.start()
		defer func() { b.stop() }()
		pass(20 * time.Minute)
		if n := len(b.asked()); n < 36 || n > 42 {
			t.Errorf("%d requests in 20 lifetimes, want about 40", n)
		}
	})
}

// TestNoLoop: a CA whose certificates end at once is asked every ten seconds at most.
func TestNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		c.Lifetime = time.Second
		b := newBench(t, c)
		b.start()
		defer func() { b.stop() }()
		pass(10 * time.Minute)
		if n := len(b.asked()); n > 61 {
			t.Errorf("%d requests in ten minutes, want 61 at most", n)
		}
	})
}

// TestOutage: a CA that is away for ten minutes is asked 25 times at most, with one key, and has the next certificate when it is back.
func TestOutage(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"cold": 0, "with a certificate": 30 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := config(nil)
				c.Lifetime = time.Minute
				b := newBench(t, c)
				b.set(ahead == 0)
				b.start()
				defer func() { b.stop() }()
				pass(ahead / 2)
				b.set(true)
				before := len(b.asked())
				pass(10*time.Minute - ahead/2)
				tries := b.asked()[before:]
				if len(tries) > 25 || len(tries) < 5 {
					t.Errorf("%d attempts in ten minutes, want 25 at most", len(tries))
				}
				for _, key := range tries {
					if key != tries[0] {
						t.Error("an attempt has a key of its own")
					}
				}
				if ahead == 0 {
					if _, err := b.m.Get(Workload); err == nil || !strings.Contains(err.Error(), "connection refused") {
						t.Errorf("%v, want why there is none", err)
					}
				}
				b.set(false)
				pass(backoffValid)
				if c := b.m.newest(); c == nil || !time.Now().Before(c.NotAfter) {
					t.Errorf("%v, want one that is valid", c)
				}
			})
		})
	}
}

// TestExpired: an outage is warned of at a quarter and a tenth of the lifetime; then once a minute. Envoy keeps what it has.
func TestExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		c.Lifetime = 10 * time.Hour
		b := newBench(t, c)
		b.start()
		defer func() { b.stop() }()
		first := b.get(t, Workload)
		b.set(true)
		said := func(text string) int { return strings.Count(b.log.String(), text) }
		expect := func(quarter, tenth, over int) {
			t.Helper()
			if q, s, o := said("three quarters"), said("about to expire"), said("has expired"); q != quarter || s != tenth || o != over {
				t.Errorf("said %d, %d and %d times, want %d, %d and %d", q, s, o, quarter, tenth, over)
			}
		}
		shows := func(state string, failed bool) {
			t.Helper()
			page := httptest.NewRecorder()
			b.m.DebugPages()[debugPage].ServeHTTP(page, httptest.NewRequest(http.MethodGet, debugPage, nil))
			var s shown
			if err := json.Unmarshal(page.Body.Bytes(), &s); err != nil {
				t.Fatal(err)
			}
			if s.State != state || (s.LastError != "") != failed || s.ID != c.id() || len(s.Roots) != 1 || s.NotAfter == nil || s.Issuer == "" || strings.Contains(page.Body.String(), "PRIVATE") {
				t.Errorf("want %s, failed %v: %s", state, failed, page.Body)
			}
		}
		shows(stateValid, false)
		pass(7*time.Hour + 29*time.Minute)
		shows(stateValid, true)
		expect(0, 0, 0)
		pass(2 * time.Minute)
		expect(1, 0, 0)
		pass(90 * time.Minute)
		expect(1, 1, 0)
		pass(time.Hour)
		expect(1, 1, 2)
		pass(5 * time.Minute)
		expect(1, 1, 7)
		shows(stateExpired, true)
		if string(b.get(t, Workload).Chain) != string(first.Chain) {
			t.Error("Envoy no longer has the certificate")
		}
		other := newManager(t, b.m.c)
		other.Import(b.m.Export())
		if other.newest() != nil {
			t.Error("a successor starts with an expired certificate")
		}
		for _, s := range b.m.Samples() {
			if s.Name == "cert_expiry_seconds" && s.Value >= 0 {
				t.Errorf("cert_expiry_seconds is %v, want less than 0", s.Value)
			}
		}
		b.set(false)
		pass(backoffLast)
		if string(b.get(t, Workload).Chain) == string(first.Chain) {
			t.Error("no other certificate")
		}
		shows(stateValid, false)
		count := said("has expired")
		pass(5 * time.Minute)
		expect(1, 1, count)
	})
}

// TestRetired: a generation that drains leaves new certificates to its successor, until its own is about to expire.
func TestRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		c.Lifetime = 10 * time.Hour
		b := newBench(t, c)
		b.start()
		defer func() { b.stop() }()
		first := b.get(t, Workload)
		pass(time.Hour)
		b.m.Retire()
		b.m.Retire()
		pass(7*time.Hour + 30*time.Minute)
		if n := len(b.asked()); n != 1 {
			t.Errorf("the CA was asked %d times, want once", n)
		}
		pass(time.Hour)
		if n := len(b.asked()); n != 2 || string(b.get(t, Workload).Chain) == string(first.Chain) {
			t.Errorf("the CA was asked %d times, and the drain goes on with a certificate that expires", n)
		}
	})
}

// TestNewRoot: Envoy has a new root before the certificate of it, and the root before for as long as is set.
func TestNewRoot(t *testing.T) {
	for name, tc := range map[string]struct {
		keep, want time.Duration
	}{
		"as long as a certificate of it": {OldRootsLeaf, 10 * time.Hour},
		"for a while":                    {time.Hour, time.Hour},
		"not at all":                     {0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := config(nil)
				c.Lifetime, c.OldRoots = 10*time.Hour, tc.keep
				b := newBench(t, c)
				b.start()
				defer func() { b.stop() }()
				before, first := b.ca, b.get(t, Workload)
				after := catest.New(t, "new")
				b.renew(after)
				pass(5 * time.Hour)
				has := func(ca *catest.CA) bool { return strings.Contains(string(b.get(t, Roots).Roots), ca.Root()) }
				if !has(after) || string(b.get(t, Workload).Chain) != string(first.Chain) {
					t.Fatal("the new root is not there alone")
				}
				pass(rootsLead)
				if string(b.get(t, Workload).Chain) == string(first.Chain) {
					t.Error("the new certificate is not there after its root")
				}
				if tc.want > 0 {
					pass(min(tc.want, 4*time.Hour) - 2*rootsLead)
					if !has(before) {
						t.Error("the old root is gone too early")
					}
				}
				if tc.want > 4*time.Hour { // another certificate of the new root comes meanwhile
					pass(tc.want - 4*time.Hour)
				}
				pass(2 * rootsLead)
				if has(before) {
					t.Error("the old root is still there")
				}
			})
		})
	}
}

// TestInherited: a successor asks the CA when the certificate is due, not before.
func TestInherited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := config(nil)
		b := newBench(t, c)
		b.m.Import(func() []byte {
			first := newManager(t, c)
			first.admit(issued(t, b.ca, workload, 2*time.Hour, 24*time.Hour), time.Now())
			return first.Export()
		}())
		b.start()
		defer func() { b.stop() }()
		pass(9*time.Hour + 59*time.Minute)
		if len(b.asked()) != 0 {
			t.Errorf("%d requests, want none yet", len(b.asked()))
		}
		pass(2 * time.Minute)
		if len(b.asked()) != 1 {
			t.Errorf("%d requests, want 1", len(b.asked()))
		}
	})
}
