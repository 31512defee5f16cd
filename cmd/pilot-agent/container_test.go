package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/pkg/control"
)

// reply is what a fake agent answers at one path: a status and a body, or err.
type reply struct {
	code int
	body string
	err  error
}

// fakeAgent is an HTTP client whose requests never leave the process.
type fakeAgent struct {
	replies map[string]reply // by path; any other path is a 404
	absent  error            // of every request, before started
	started time.Time        // zero is never
	asked   []string         // "METHOD path?query body"
}

func (f *fakeAgent) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	f.asked = append(f.asked, strings.TrimSpace(fmt.Sprint(r.Method, " ", r.URL.RequestURI(), " ", string(body))))
	if f.absent != nil && (f.started.IsZero() || time.Now().Before(f.started)) {
		return nil, f.absent
	}
	answer, known := f.replies[r.URL.Path]
	if !known {
		answer = reply{code: 404, body: "404 page not found"}
	}
	if answer.err != nil {
		return nil, answer.err
	}
	return &http.Response{StatusCode: answer.code, Body: io.NopCloser(strings.NewReader(answer.body))}, nil
}

func (f *fakeAgent) client() *http.Client { return &http.Client{Transport: f} }

// byPort has an agent at each address.
type byPort map[string]*fakeAgent

func (p byPort) RoundTrip(r *http.Request) (*http.Response, error) { return p[r.URL.Host].RoundTrip(r) }

// fakePod is a container of a pod with an agent of its own and somebody at the ports.
type fakePod struct {
	own, ports fakeAgent
	foreign    error
}

func (p *fakePod) container() container {
	return container{control: p.own.client(), ports: p.ports.client(), foreign: func() error { return p.foreign }}
}

var refused = &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}

// errForeign is what foreignPorts says in a pod with two slots.
var errForeign = fmt.Errorf("%w, and the ports are another's", control.ErrNoAgent)

func asJSON(t *testing.T, v any) reply {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return reply{code: 200, body: string(body)}
}

func TestForeignPorts(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	own = strings.Trim(strings.TrimPrefix(own, "mnt:"), "[]")
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	line := func(path string) string {
		return "0000000000000000: 00000002 00000000 00010000 0001 01 31337 " + path + "\n"
	}
	dir := t.TempDir()
	for _, tc := range []struct {
		name    string
		dirs    []string
		sockets string // "" is no file
		want    string // "" is nil
	}{
		{"one container", []string{dir + "/none"}, head + line("/run/x.sock") + line("@other"), ""},
		{"no sockets", nil, head, ""},
		{"a hand-off directory", []string{dir + "/none", dir}, head, "there is a hand-off directory, " + dir},
		{"its own agent", nil, head + line(control.SocketPrefix+own), ""},
		{"its own agent under its last name", nil, head + line(control.SocketPrefix+own+"-4"), ""},
		{"the lock of capture", nil, head + line("@understudy-capture"), ""},
		{"another container's agent", nil, head + line(control.SocketPrefix+own) + line(control.SocketPrefix+"1"), "the socket @understudy-1"},
		{"a socket without a name", nil, head + "0000000000000000: 00000003 00000000 00000000 0001 03 31338\n", ""},
		{"it cannot be told", nil, "", "cannot be found out"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "unix")
			if tc.sockets != "" {
				if err := os.WriteFile(path, []byte(tc.sockets), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := foreignPorts(tc.dirs, path)
			if tc.want == "" {
				if err != nil {
					t.Errorf("%v, want none", err)
				}
				return
			}
			if !errors.Is(err, control.ErrNoAgent) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want ErrNoAgent with %q", err, tc.want)
			}
		})
	}
}

func TestHandoffDirs(t *testing.T) {
	for _, tc := range []struct {
		environ []string
		want    string
	}{
		{nil, "/etc/asm/uds"},
		{[]string{"A=b", "UNDERSTUDY_HANDOFF_DIR=/run/uds"}, "/etc/asm/uds /run/uds"},
		{[]string{"UNDERSTUDY_HANDOFF_DIR="}, "/etc/asm/uds"},
	} {
		if got := strings.Join((&env{Environ: tc.environ}).handoffDirs(), " "); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.environ, got, tc.want)
		}
	}
}

func TestPatiently(t *testing.T) {
	broken := errors.New("broken")
	for _, tc := range []struct {
		name  string
		until int   // the call that meets an agent; 0 is none
		then  error // what it says
		first error // what the calls before it say
		want  error
		after time.Duration
	}{
		{"at once", 1, nil, nil, nil, 0},
		{"an error is final", 1, broken, nil, broken, 0},
		{"no agent at first", 4, nil, control.ErrNoAgent, nil, 3 * agentPeriod},
		{"no port at first", 2, nil, refused, nil, agentPeriod},
		{"no agent at all", 0, nil, control.ErrNoAgent, control.ErrNoAgent, agentPatience},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, calls := time.Now(), 0
				err := patiently(t.Context(), func() error {
					if calls++; calls == tc.until {
						return tc.then
					}
					return tc.first
				})
				if !errors.Is(err, tc.want) || time.Since(start) != tc.after {
					t.Errorf("%v after %s, want %v after %s", err, time.Since(start), tc.want, tc.after)
				}
			})
		})
	}
}

// The commands of a container of a pod are run in namespaces of their own, as another
// user and with an empty environment, against a server with the name of the agent's socket.
const asContainer = "UNDERSTUDY_TEST_CONTAINER"

func TestOwnContainer(t *testing.T) {
	if os.Getenv(asContainer) != "" {
		beContainer(t)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, for namespaces of its own")
		}
		t.Skip("needs root, for namespaces of its own")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwnContainer$", "-test.v")
	cmd.Env = append(os.Environ(), asContainer+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func beContainer(t *testing.T) {
	mount, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", control.SocketPrefix+strings.Trim(strings.TrimPrefix(mount, "mnt:"), "[]"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mux := http.NewServeMux()
	mux.HandleFunc(control.RolePath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(control.RoleStatus{Role: "serving", Settled: true, Drained: true})
	})
	mux.HandleFunc(control.UpgradePath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(control.UpgradeStatus{Off: "no hand-off directory"})
	})
	for page, answer := range dnsAnswers {
		mux.HandleFunc(control.StatusPrefix+page, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answer.page) })
	}
	mux.HandleFunc(control.StatusPrefix+"/x", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method) })
	go http.Serve(l, mux)
	for _, uid := range []uint32{0, 1337} {
		for _, tc := range []struct{ line, want string }{
			{"wait", ""},
			{"wait --for=drained", ""},
			{"upgrade-status", "Hot upgrade is off: no hand-off directory"},
			{"request --debug-port=15020 POST x", "POST"},
			{"dns lookup aliyun.com", "source:    vip"},
			{"dns table", "aliyun.com        VIP        240.240.1.2"},
			{"dns cache aliyun.com -o json", `"name": "www.example.",`},
			{"dns vips -o=table", "Used: 2 of 65024."},
			{"dns upstreams", "198.51.100.53:53   failing"},
		} {
			if out, err := commandAs(t, uid, tc.line); err != nil || !strings.Contains(out, tc.want) {
				t.Errorf("uid %d: %s: %v: %q, want %q", uid, tc.line, err, out, tc.want)
			}
		}
	}
	out, err := commandAs(t, 1000, "wait --timeoutSeconds=1 --url=http://127.0.0.1:1/")
	if err == nil || !strings.Contains(out, "Last error:") {
		t.Errorf("a URL that nobody answers, with an agent in the container: %v: %q", err, out)
	}
}

// commandAs runs this test binary as pilot-agent, see TestMain.
func commandAs(t *testing.T, uid uint32, line string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{"pilot-agent"}, strings.Fields(line)...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return string(out), err
}
