package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
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

func (p *fakePod) client() *Client {
	return &Client{control: p.own.client(), ports: p.ports.client(), foreign: func() error { return p.foreign }}
}

var refused = &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", unix.ECONNREFUSED)}

// errForeign is what foreignPorts says in a pod with two slots.
var errForeign = fmt.Errorf("%w, and the ports are another's", ErrNoAgent)

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
		{"its own agent", nil, head + line(socketPrefix+own), ""},
		{"its own agent under its last name", nil, head + line(socketPrefix+own+"-4"), ""},
		{"the lock of capture", nil, head + line("@understudy-capture"), ""},
		{"another container's agent", nil, head + line(socketPrefix+own) + line(socketPrefix+"1"), "the socket @understudy-1"},
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
			if !errors.Is(err, ErrNoAgent) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want ErrNoAgent with %q", err, tc.want)
			}
		})
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
		{"no agent at first", 4, nil, ErrNoAgent, nil, 3 * askPeriod},
		{"no port at first", 2, nil, refused, nil, askPeriod},
		{"no agent at all", 0, nil, ErrNoAgent, ErrNoAgent, patience},
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
