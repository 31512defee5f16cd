package iptables

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Two that read the same state would both add the jumps.
func TestManyAtOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, b Backend) {
		c := fullConfig()
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
	eachBackend(t, func(t *testing.T, b Backend) {
		for i := range 15 {
			c := fullConfig()
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
				listed := listedConfig()
				listed.Backend = b
				apply(t, listed)
			}
		}
	})
}

func TestLockIsWaitedFor(t *testing.T) {
	newPod(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, release, err := acquire(t.Context(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = Apply(short, fullConfig(), quiet())
	if me := fmt.Sprintf("process %d (%s", os.Getpid(), os.Args[0]); err == nil || !strings.Contains(err.Error(), me) {
		t.Errorf("error does not say that %s holds the lock: %v", me, err)
	}

	// A child that outlives its parent.
	began := time.Now()
	out := start(ctx, nil, "sh", "-c", "echo still here; exec sleep 0.2")
	release()
	apply(t, fullConfig())
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("applied after %v, while a binary was at work under the lock", took)
	}
	if text, err := out(); err != nil || text != "still here\n" {
		t.Error(text, err)
	}
}
