package iptables_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// squat takes the lock's name until standard input ends: it listens, is narrow (takes a
// single connection), deaf (bound, and never listens), or full (takes none).
func squat(manner string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: lockName})
	}
	room := 0
	if manner == "listens" {
		room = 16
	}
	if err == nil && manner != "deaf" {
		err = unix.Listen(fd, room)
	}
	if err == nil && manner == "full" {
		_, err = net.Dial("unix", lockName)
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// squatter is a process of a user that takes the lock's name until leave is called.
func squatter(t *testing.T, uid uint32, manner string) (pid int, leave func()) {
	t.Helper()
	cmd := self(uid, "squat", manner)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leave = func() { stdin.Close(); cmd.Wait() }
	t.Cleanup(leave)
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatal(line)
	}
	return cmd.Process.Pid, leave
}

// Nobody who may not change the rules can keep others from it.
func TestStrangersLockIsNotWaitedFor(t *testing.T) {
	for _, manner := range []string{"listens", "narrow", "deaf", "full"} {
		t.Run(manner, func(t *testing.T) {
			capture.NewPod(t)
			pid, _ := squatter(t, 1000, manner)
			var said bytes.Buffer
			c := capture.Full()
			if err := iptables.Apply(t.Context(), c, slog.New(slog.NewTextHandler(&said, nil))); err != nil {
				t.Fatal(err)
			}
			asWanted(t, c, rule.NFT)
			who := "does not accept connections"
			if manner == "listens" || manner == "narrow" {
				who = fmt.Sprintf("process %d (", pid)
				if !strings.Contains(said.String(), "of uid 1000") {
					t.Errorf("does not name uid 1000: %s", said.String())
				}
			}
			if !strings.Contains(said.String(), "without the lock") || !strings.Contains(said.String(), who) {
				t.Errorf("does not say %q: %s", who, said.String())
			}
			if err := iptables.Clean(t.Context(), capture.Quiet()); err != nil {
				t.Error(err)
			}
		})
	}
}

// lockName is where releases of this agent meet: another one must find it there.
const lockName = "@understudy-capture"
