// Package lab owns the machine of one end-to-end test: a "pod" and an "outside" network
// namespace joined by a veth pair, the containers (private roots) in the pod, and every process,
// mount and directory made for them. What it makes is named after the test process
// (e2e-<pid>-<n>-pod and -out, scratch directory e2e-<pid>-<n>), and all of it goes when the test ends, however it ends: by
// Cleanup in the ordinary case, by a janitor process after a panic, a time-out or kill -9.
//
// Only tests and benchmarks may import it.
package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// T is what the lab asks of the test it serves. *testing.T has it, and so has what Program runs.
type T interface {
	Helper()
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Failed() bool
	Cleanup(func())
}

// Addresses of the lab. Every lab has namespaces of its own, so all labs use the same ones.
const (
	PodIP   = "10.77.0.2"
	PodIPv6 = "fd77::2"
	// OutIP is the outside's end of the veth pair and the pod's gateway.
	OutIP   = "10.77.0.1"
	OutIPv6 = "fd77::1"
	// Internet and InternetIPv6 are local to the outside as a whole (AnyIP routes), so that a
	// server may listen on any address of them. RFC 5737 and RFC 3849.
	Internet     = "198.51.100.0/24"
	InternetIPv6 = "2001:db8::/32"
	// NameServer is where the lab's authoritative DNS server listens, NameServerIPv6 its other address.
	NameServer     = "198.51.100.53"
	NameServerIPv6 = "2001:db8::53"
)

// Deadline is the longest that a lab waits for something that ought to happen soon. It is an
// upper bound for a machine that is busy with other tests, not an expectation.
const Deadline = 30 * time.Second

// pollEvery is the pause between two looks at something that gives no event to wait for.
const pollEvery = 20 * time.Millisecond

// Lab is one test's machine.
type Lab struct {
	Pod, Out *Namespace
	// Dir is a scratch directory on the host, removed with the lab.
	Dir string
}

// Options say what is unusual about a lab. The zero value is a dual-stack one.
type Options struct {
	// IPv4Only leaves IPv6 out of both namespaces.
	IPv4Only bool
}

// New makes a dual-stack lab that lives until t ends. Without root or one of the tools it needs
// the test is skipped, or fails when the environment has CI=true.
func New(t T) *Lab {
	t.Helper()
	return NewWith(t, Options{})
}

// NewWith is New with options.
func NewWith(t T, o Options) *Lab {
	t.Helper()
	require(t)
	sweepDead()
	dir, err := reserve()
	l := &Lab{Dir: dir}
	janitor := startJanitor(t, dir)
	t.Cleanup(func() {
		l.closeHandles()
		sweep(dir)
		janitor.dismiss()
	})
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	prefix := filepath.Base(dir)
	l.Pod = openNamespace(t, prefix+podSuffix)
	l.Out = openNamespace(t, prefix+outSuffix)
	l.wire(t, o)
	return l
}

func (l *Lab) closeHandles() {
	for _, n := range []*Namespace{l.Pod, l.Out} {
		if n != nil {
			n.close()
		}
	}
}

// require ends the test when this machine cannot run it.
func require(t T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "root"
	}
	for _, tool := range []string{"ip", "nsenter", "unshare", "setpriv", "iptables-restore"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool + " in PATH"
		}
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("lab: this test needs %s, and CI=true allows no skip", missing)
	}
	t.Skipf("lab: this test needs %s", missing)
}

// RepoRoot returns the directory of go.mod, found from the working directory upwards.
func RepoRoot(t T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatalf("lab: find the working directory: %v", err)
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
		if d == filepath.Dir(d) {
			t.Fatalf("lab: no go.mod in %s or above it", dir)
		}
	}
}

// AgentBinary returns the path of the built agent: $AGENT_BINARY, else bin/pilot-agent. A missing
// one fails the test: `make build` is all it takes.
func AgentBinary(t T) string {
	t.Helper()
	return binary(t, "AGENT_BINARY", "pilot-agent", "make build")
}

// EnvoyBinary returns the path of a real Envoy: $ENVOY_BINARY, else bin/envoy.
func EnvoyBinary(t T) string {
	t.Helper()
	return binary(t, "ENVOY_BINARY", "envoy", "make envoy")
}

// OtherEnvoyBinary returns the path of a real Envoy of another version than EnvoyBinary's:
// $OTHER_ENVOY_BINARY, else bin/envoy-1.39.3.
func OtherEnvoyBinary(t T) string {
	t.Helper()
	return binary(t, "OTHER_ENVOY_BINARY", "envoy-1.39.3", "make envoy")
}

// versionNumber is in what Envoy says of itself: COMMIT/1.40.0/Clean/RELEASE/BoringSSL.
var versionNumber = regexp.MustCompile(`/(\d+\.\d+\.\d+)/`)

// EnvoyVersion returns the version that an Envoy binary says that it has, such as "1.40.0".
func EnvoyVersion(t T, path string) string {
	t.Helper()
	out, err := exec.Command(path, "--version").Output()
	found := versionNumber.FindSubmatch(out)
	if err != nil || found == nil {
		t.Fatalf("%s --version: %v: %s", path, err, out)
	}
	return string(found[1])
}

// StandbyBinary returns the path of the built agent of the empty image: $STANDBY_BINARY, else
// bin/pilot-agent-standby.
func StandbyBinary(t T) string {
	t.Helper()
	return binary(t, "STANDBY_BINARY", "pilot-agent-standby", "make build")
}

func binary(t T, env, name, remedy string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		path = filepath.Join(RepoRoot(t), "bin", name)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatalf("lab: find %s: %v; run `%s`, or set %s", name, err, remedy, env)
	}
	return real
}

// Eventually calls check until it returns nil, and fails the test with its last error when that
// has not happened within d.
func Eventually(t T, d time.Duration, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, d, err)
		case <-tick.C:
		}
	}
}

// run executes a host command and returns its output; an error carries it.
func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}
