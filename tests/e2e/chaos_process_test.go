package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// roleEnv makes the test binary, executed again, the process below: a user belongs to a process.
const (
	roleEnv    = "E2E_PROCESS"
	attackRole = "attack" // attack.run, with the attack on standard input
)

func TestMain(m *testing.M) {
	ran, err := lab.RunTraffic()
	if os.Getenv(roleEnv) == attackRole {
		ran, err = true, makeAttack()
	}
	if !ran {
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// attack is what somebody does to a hand-off socket.
type attack struct {
	Socket      string // a name in the process's working directory
	UID         int
	Connections int
	Together    int // how many of them at a time
	Seed        uint64
}

// attacked is what came of an attack.
type attacked struct {
	Connected int // connections that were made
	Denied    int // and those that were not
	Answered  int // on how many of them anything came back
}

// silence is how long an attacker waits for an answer that ought not to come.
const silence = 300 * time.Millisecond

func makeAttack() error {
	var a attack
	if err := json.NewDecoder(os.Stdin).Decode(&a); err != nil {
		return fmt.Errorf("read the attack: %w", err)
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(a.UID), syscall.Setuid(a.UID)); err != nil {
		return fmt.Errorf("become uid %d: %w", a.UID, err)
	}
	return json.NewEncoder(os.Stdout).Encode(a.run())
}

func (a attack) run() attacked {
	var mu sync.Mutex
	var sum attacked
	var wg sync.WaitGroup
	for worker := range a.Together {
		random := rand.New(rand.NewPCG(a.Seed, uint64(worker)))
		wg.Go(func() {
			for i := worker; i < a.Connections; i += a.Together {
				connected, answered := a.connect(random)
				mu.Lock()
				if connected {
					sum.Connected++
				} else {
					sum.Denied++
				}
				if answered {
					sum.Answered++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sum
}

func (a attack) connect(random *rand.Rand) (connected, answered bool) {
	c, err := net.Dial("unix", a.Socket)
	if err != nil {
		return false, false
	}
	defer c.Close()
	nonsense := nonsense(random)
	_ = c.SetDeadline(time.Now().Add(silence))
	_, _ = c.Write(nonsense)
	if random.IntN(2) == 0 {
		_ = c.(*net.UnixConn).CloseWrite()
	}
	if random.IntN(4) == 0 {
		return true, false // gone before any answer
	}
	got, _ := io.ReadAll(io.LimitReader(c, 1))
	return true, len(got) > 0
}

// hello is a frame of the hand-off protocol, version 1, as a newcomer begins with.
const hello = "USHO\x01\x01\x00\x00\x00\x00\x00\x4f\x00\x00\x00\x00" +
	`{"min":1,"max":1,"identity":{"id":"0badcafe","started":"2100-01-01T00:00:00Z"}}`

// nonsense is what an attacker says.
func nonsense(random *rand.Rand) []byte {
	junk := make([]byte, random.IntN(400))
	for i := range junk {
		junk[i] = byte(random.Uint32())
	}
	switch random.IntN(6) {
	case 0:
		return nil
	case 1:
		return junk
	case 2: // a truncated frame
		return []byte(hello[:random.IntN(len(hello))])
	case 3: // a frame of 4 GiB
		return append([]byte(hello[:8]), "\xff\xff\xff\xff\xff\xff\xff\xff"...)
	case 4: // a newcomer that says nothing more that makes sense
		return append([]byte(hello), junk...)
	}
	return append([]byte("USHO\x01\x01"), junk...)
}
