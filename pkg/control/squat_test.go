package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.mesh/pkg/contract"
)

// asSquatter makes the test binary a process that takes names, for a test as another user.
const asSquatter = "UNDERSTUDY_TEST_CONTROL_SQUATTER"

// squat takes each of the names "MANNER@NAME" until standard input ends: it listens on
// one, is narrow (takes a single connection), deaf (bound, and never listens), or full
// (takes none).
func squat(names []string) error {
	for _, each := range names {
		manner, name, _ := strings.Cut(each, "@")
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name})
		}
		room := 0
		if manner == "listens" {
			room = 16
		}
		if err == nil && manner != "deaf" {
			err = unix.Listen(fd, room)
		}
		if err == nil && manner == "full" {
			_, err = net.Dial("unix", "@"+name)
		}
		if err != nil {
			return fmt.Errorf("squat on %s: %w", name, err)
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// squatter takes names of the control socket as uid 1000 until leave is called, in the
// manner of each, the first name first.
func squatter(t *testing.T, manners ...string) (pid int, leave func()) {
	t.Helper()
	return squatterBy(t, stranger(t), 1000, manners...)
}

func squatterBy(t *testing.T, program string, uid uint32, manners ...string) (pid int, leave func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to run a process as another user")
	}
	names, err := ownSocketNames()
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for i, manner := range manners {
		args = append(args, manner+names[i])
	}
	cmd := exec.Command(program)
	cmd.Env = []string{asSquatter + "=" + strings.Join(args, " ")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
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

// stranger returns this test binary under another name: root takes what has its own
// program's name for an agent.
func stranger(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stranger")
	if err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "stranger")
	if out, err := exec.Command("sh", "-c", `ln "$0" "$1" 2>/dev/null || cp "$0" "$1"`, self, path).CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	return path
}

// The agent takes the next name, and commands find it there.
func TestControlPassesStrangersBy(t *testing.T) {
	for _, manners := range [][]string{{"listens"}, {"deaf"}, {"full"}, {"narrow", "full", "deaf"}} {
		t.Run(strings.Join(manners, " "), func(t *testing.T) {
			pid, _ := squatter(t, manners...)
			l, err := Listen()
			if err != nil {
				t.Fatal(err)
			}
			names, _ := ownSocketNames()
			if got := l.Addr().String(); got != names[len(manners)] {
				t.Errorf("binds %s, want %s", got, names[len(manners)])
			}
			if (manners[0] == "listens" || manners[0] == "narrow") && !strings.Contains(l.strangers.Error(), fmt.Sprintf("%s is held by uid 1000, pid %d", names[0], pid)) {
				t.Errorf("does not say who has the first name: %v", l.strangers)
			}
			l.Close()
			startControl(t)
			if out := clientAs(t, 0); !strings.Contains(out, "status/x|<nil>") {
				t.Errorf("a command does not find the agent: %s", out)
			}
			if _, err := Listen(); !errors.Is(err, ErrTaken) {
				t.Errorf("a second agent in one container: %v, want a refusal", err)
			}
		})
	}
}

// An agent that has taken a later name is found when the first one is free again.
func TestControlKnowsTheOtherAgentByAnyName(t *testing.T) {
	_, leave := squatter(t, "listens")
	startControl(t)
	leave()
	if _, err := Listen(); !errors.Is(err, ErrTaken) {
		t.Errorf("a second agent in one container: %v, want a refusal", err)
	}
	if out := clientAs(t, 0); !strings.Contains(out, "status/x|<nil>") {
		t.Errorf("a command does not find the agent: %s", out)
	}
}

// Strangers with every name stop no agent: it has one as soon as it can, and until then
// commands name who is in the way.
func TestControlOfStrangersOnly(t *testing.T) {
	pid, leave := squatter(t, "listens", "listens", "listens", "listens")
	who := fmt.Sprintf("is held by uid 1000, pid %d", pid)
	if _, err := Listen(); !errors.Is(err, ErrHeld) || strings.Count(err.Error(), who) != 4 {
		t.Errorf("%v, want that all four names are held by uid 1000, pid %d", err, pid)
	}
	for _, uid := range []uint32{0, 1337} {
		if out := clientAs(t, uid); !strings.Contains(out, errImpostor.Error()) || !strings.Contains(out, who) {
			t.Errorf("uid %d: %s, want that uid 1000, pid %d is no agent", uid, out, pid)
		}
	}
	claimed := make(chan *Listener)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		l, err := claim(ctx, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Error(err)
		}
		claimed <- l
	}()
	leave()
	if l := <-claimed; l != nil {
		l.Close()
	}
}

// Root believes more than others, but not whoever shares its mount namespace.
func TestWhomRootBelieves(t *testing.T) {
	names, err := ownSocketNames()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		program string // "" is a stranger's
		uid     uint32
		want    bool
	}{
		{"another program", "", 1000, false},
		{"the proxy's user", "", contract.ProxyUID, true},
		{"this program", "/proc/self/exe", 1000, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.program == "" {
				tt.program = stranger(t)
			}
			squatterBy(t, tt.program, tt.uid, "listens")
			h, known := ownerOf(names[0])
			if !known || h.isTrusted() || h.isTrustedByRoot() != tt.want {
				t.Errorf("known %v, believed by all %v, by root %v, want %v", known, h.isTrusted(), h.isTrustedByRoot(), tt.want)
			}
		})
	}
}
