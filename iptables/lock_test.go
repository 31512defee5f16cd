package iptables_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/internal/access"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// Two that read the same state would both add the jumps.
func TestManyAtOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		c := capture.Full()
		c.Backend = b
		for range 3 {
			const applies = 6
			done := make(chan error, applies)
			for range applies {
				cmd := self(0, "apply", string(b))
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start() // here, on the thread that is in the namespace
				}
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					said := make([]byte, 1024)
					n, _ := out.Read(said)
					if err := cmd.Wait(); err != nil {
						done <- fmt.Errorf("%w: %s", err, said[:n])
						return
					}
					done <- nil
				}()
			}
			for range applies {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			inForce(t, c, b)
			clean(t)
		}
	})
}

// Whatever an apply that is killed had started still holds the lock: it commits
// before the next one looks, or not at all.
func TestKilledAtAnyMoment(t *testing.T) {
	const usual = 25 * time.Millisecond // of an apply, on an idle machine
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		for i := range 15 {
			c := capture.Full()
			c.Backend = b
			if i%2 == 0 {
				clean(t)
			}
			cmd := self(0, "apply", string(b))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			timer := time.AfterFunc(rand.N(usual), func() { cmd.Process.Kill() })
			cmd.Wait()
			timer.Stop()
			apply(t, c)
			asWanted(t, c, b)
			if i%5 == 0 {
				listed := capture.Listed()
				listed.Backend = b
				apply(t, listed)
			}
		}
	})
}

func TestLockIsWaitedFor(t *testing.T) {
	capture.NewPod(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	_, release, err := access.Acquire(t.Context(), capture.Quiet())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = iptables.Apply(short, capture.Full(), capture.Quiet())
	if me := fmt.Sprintf("process %d (%s", os.Getpid(), os.Args[0]); err == nil || !strings.Contains(err.Error(), me) {
		t.Errorf("error does not say that %s holds the lock: %v", me, err)
	}
	release()
	apply(t, capture.Full())
}

func TestHeldXtablesLock(t *testing.T) {
	capture.NewPod(t)
	skipBackend(t, rule.Legacy)
	file := filepath.Join(t.TempDir(), "lock")
	t.Setenv("XTABLES_LOCKFILE", file)
	holder := exec.Command("flock", file, "sh", "-c", "echo held; exec cat")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Read(make([]byte, 16))

	before := rulesNow(t)
	c := capture.Full()
	c.Backend = rule.Legacy
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = iptables.Apply(short, c, capture.Quiet())
	if want := fmt.Sprintf("held by process %d (flock %s", holder.Process.Pid, file); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error does not say %q: %v", want, err)
	}
	if after := rulesNow(t); after != before {
		t.Errorf("changed:\n%s", after)
	}

	done := make(chan error)
	go func() {
		stdin.Close()
		done <- holder.Wait()
	}()
	apply(t, c) // waits for its end
	inForce(t, c, rule.Legacy)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
