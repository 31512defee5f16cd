package iptables

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
	out := startUnderLock(ctx, "sh", "-c", "echo still here; exec sleep 0.2")
	release()
	apply(t, fullConfig())
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("applied after %v, while a binary was at work under the lock", took)
	}
	if text, err := out(); err != nil || text != "still here\n" {
		t.Error(text, err)
	}
}

func TestHeldXtablesLock(t *testing.T) {
	newPod(t)
	skipBackend(t, Legacy)
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

	before := saved(t)
	c := fullConfig()
	c.Backend = Legacy
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = Apply(short, c, quiet())
	if want := fmt.Sprintf("held by process %d (flock %s", holder.Process.Pid, file); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error does not say %q: %v", want, err)
	}
	if after := saved(t); after != before {
		t.Errorf("changed:\n%s", after)
	}

	done := make(chan error)
	go func() {
		stdin.Close()
		done <- holder.Wait()
	}()
	apply(t, c) // waits for its end
	inForce(t, c, Legacy)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFlockHolder(t *testing.T) {
	const locks = "1: FLOCK  ADVISORY  WRITE 967 fe:00:9986066 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 968 fe:00:77 0 EOF\n2: POSIX  ADVISORY  WRITE 5 00:2d:77 0 EOF\n3: FLOCK  ADVISORY  WRITE 12 00:2d:77 0 EOF\n\nx\n"
	for inode, want := range map[uint64]int{9986066: 967, 77: 12, 7: 0, 99860: 0} {
		if got := flockHolder(locks, inode); got != want {
			t.Errorf("inode %d: process %d, want %d", inode, got, want)
		}
	}
}
