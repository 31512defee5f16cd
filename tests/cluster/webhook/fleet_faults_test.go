package webhook

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// fleetLimit is how long a few pods may take, whatever becomes of the engine meanwhile.
const fleetLimit = 10 * time.Minute

// TestUpgraderIsKilled kills the upgrader at every write that it sends: each once before the API server has it, and once after that and before
// the answer. Another process goes on each time, with pods that are upgraded, that have a bad image, and that go back. Nothing is done
// twice, the bad image gets to one pod, and no pod is without a proxy at any time.
func TestUpgraderIsKilled(t *testing.T) {
	f := newFleet(t, 3, 200*time.Millisecond, time.Second)
	k := &killer{fleet: f, met: map[string]int{}}
	f.gate.spoils(k.spoil)
	f.ask(secondImage, `"observe": "1s", "maxUnavailable": 1`)
	k.untilOver(secondImage)
	f.mustRun(secondImage)
	f.ask(badImage, `"observe": "1s", "maxUnavailable": 1`)
	k.untilOver(badImage)
	if s := f.status(); s.Phase != "Stopped" || s.Pods.Failed != 1 || len(s.Failed) != 1 {
		t.Errorf("a bad image: %+v", s)
	}
	tried := 0
	for _, p := range f.pods {
		if p.unready > 0 {
			tried++
		}
	}
	if tried != 1 {
		t.Errorf("%d pods had the bad image, want 1", tried)
	}
	t.Logf("%d processes were killed, at %d writes", k.kills, len(k.met))
	if k.kills < 2*5*len(f.pods) {
		t.Errorf("%d kills: there are more steps than that", k.kills)
	}
}

// killer kills the upgrader at writes.
type killer struct {
	*fleet
	kills int

	mu      sync.Mutex
	process *engine
	dead    bool
	met     map[string]int // how often a write was met, by method and path
}

// otherKills is how many processes are killed at each path that is not a pod's: those are written again and again.
const otherKills = 4

// spoil forwards all but a write at which the process is to be killed. Of the same write that is the first one before, and the second one after.
func (k *killer) spoil(out http.ResponseWriter, r *http.Request, forward http.Handler) {
	if r.Method == http.MethodGet {
		forward.ServeHTTP(out, r)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock() // one at a time: no write is on its way when the process is killed at another one
	what := r.Method + " " + r.URL.Path
	if k.dead {
		panic(http.ErrAbortHandler)
	}
	pod := strings.Contains(r.URL.Path, "/pods/")
	if !pod && k.met[what] >= otherKills {
		forward.ServeHTTP(out, r)
		return
	}
	k.met[what]++
	if k.met[what]%2 == 0 {
		forward.ServeHTTP(httptest.NewRecorder(), r)
	}
	k.dead = true
	_ = k.process.Process.Kill()
	panic(http.ErrAbortHandler)
}

// untilOver starts one process after another until the request for an image has come to its end.
func (k *killer) untilOver(image string) {
	k.t.Helper()
	for began := time.Now(); ; k.kills++ {
		k.mu.Lock()
		k.process, k.dead = k.start(), false
		e := k.process
		k.mu.Unlock()
		died := make(chan struct{})
		go func() { defer close(died); _ = e.Wait() }()
		for over := false; !over; {
			select {
			case <-died:
				over = true
			case <-time.After(time.Second):
				if s := k.status(); s.Image == image && s.Finished != "" {
					_ = e.Process.Kill()
					<-died
					return
				}
			}
		}
		if time.Since(began) > fleetLimit {
			k.t.Fatalf("%d processes and no end: %+v", k.kills, k.status())
		}
		// Its Leases run out, which takes 12 s otherwise.
		k.Kubectl(k.t, "", "delete", "lease", "sidecar-upgrade", "-n", k.namespace, "--ignore-not-found")
		k.Kubectl(k.t, "", "delete", "lease", "sidecar-upgrader", "-n", own, "--ignore-not-found")
	}
}

// TestLongTwoUpgraders: of two processes one works. It is stopped for longer than it may hold its Lease, the other one goes on, and
// when the first one wakes up it does nothing that was decided before.
func TestLongTwoUpgraders(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, 40, time.Second, time.Second)
	engines := []*engine{f.start(), f.start()}
	f.ask(secondImage, `"observe": "1s", "maxUnavailable": 2, "canary": []`)
	for range 2 {
		asleep := f.atWork(engines, nil)
		_ = asleep.Process.Signal(syscall.SIGSTOP)
		f.atWork(engines, asleep)
		_ = asleep.Process.Signal(syscall.SIGCONT)
		done := f.status().Pods.Done
		lab.Eventually(t, fleetLimit, "the other one goes on beside it", func() error {
			if s := f.status(); s.Pods.Done < done+4 {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
	}
	f.await(fleetLimit, secondImage)
	f.mustRun(secondImage)
	if f.mostFlying > 2 {
		t.Errorf("%d pods were in the middle of a hand-over at once", f.mostFlying)
	}
}

// atWork waits until a process has a pod under way, other than one that sleeps, and returns it.
func (f *fleet) atWork(engines []*engine, asleep *engine) (at *engine) {
	f.t.Helper()
	lab.Eventually(f.t, fleetLimit, "a process is at work", func() error {
		s := f.status()
		for _, e := range engines {
			if e != asleep && isOf(s.Engine, e) && s.Pods.InFlight > 0 {
				at = e
				return nil
			}
		}
		return fmt.Errorf("%+v", s)
	})
	f.t.Logf("%d is at work", at.Process.Pid)
	return at
}

func isOf(identity string, e *engine) bool {
	return strings.HasSuffix(identity, fmt.Sprintf("-%d", e.Process.Pid))
}

// TestLongUpgraderSpoiledAnswers: an API server that refuses, delays and forgets every other thing that it is asked.
func TestLongUpgraderSpoiledAnswers(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	f := newFleet(t, 30, 500*time.Millisecond, time.Second)
	s := &spoiler{random: rand.New(rand.NewPCG(1, 2)), done: map[string]int{}}
	f.gate.spoils(s.spoil)
	e := f.start()
	f.ask(secondImage, `"observe": "1s", "maxUnavailable": "20%", "canary": []`)
	f.await(fleetLimit, secondImage)
	f.gate.spoils(nil)
	f.mustRun(secondImage)
	if f.mostFlying > 6 {
		t.Errorf("%d pods were in the middle of a hand-over at once", f.mostFlying)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Logf("spoiled: %v", s.done)
	for _, fault := range []string{"409", "429", "500", "no answer", "silence", "a watch is cut"} {
		if s.done[fault] == 0 {
			t.Errorf("nothing was spoiled by %s", fault)
		}
	}
	text, err := os.ReadFile(e.log)
	if err != nil || strings.Contains(string(text), "panic") {
		t.Errorf("%v\n%s", err, text)
	}
}

// spoiler spoils answers at random.
type spoiler struct {
	mu     sync.Mutex
	random *rand.Rand
	done   map[string]int
}

// silences is how many requests are never answered: each takes as long as the upgrader waits.
const silences = 4

func (s *spoiler) draw() (n int, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = s.random.IntN(100)
	return n, n >= 95 && s.done["silence"] < silences
}

func (s *spoiler) note(fault string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done[fault]++
}

func (s *spoiler) spoil(out http.ResponseWriter, r *http.Request, forward http.Handler) {
	n, silent := s.draw()
	refuse := func(code int, reason, text string) {
		s.note(fmt.Sprint(code))
		out.Header().Set("Content-Type", "application/json")
		if code == http.StatusTooManyRequests {
			out.Header().Set("Retry-After", "1")
		}
		out.WriteHeader(code)
		fmt.Fprintf(out, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": %q, "message": %q, "code": %d}`, reason, text, code)
	}
	lease := strings.Contains(r.URL.Path, "/leases/")
	switch write := r.Method != http.MethodGet; {
	case r.URL.Query().Get("watch") != "" && n < 50:
		s.note("a watch is cut")
		cut := http.NewResponseController(out)
		go func() {
			time.Sleep(5 * time.Second)
			_ = cut.SetWriteDeadline(time.Now())
		}()
		forward.ServeHTTP(out, r)
	case r.URL.Query().Get("watch") != "", lease && n >= 20:
		forward.ServeHTTP(out, r)
	case write && !lease && n < 15:
		refuse(http.StatusConflict, "Conflict", "the object has been modified")
	case n < 25:
		refuse(http.StatusTooManyRequests, "TooManyRequests", "later")
	case n < 35:
		refuse(http.StatusInternalServerError, "InternalError", "etcdserver: leader changed")
	case write && n < 45:
		s.note("no answer")
		forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	case silent:
		s.note("silence")
		_, _ = io.Copy(io.Discard, r.Body) // the end of the connection is noticed after that
		<-r.Context().Done()
	default:
		forward.ServeHTTP(out, r)
	}
}
