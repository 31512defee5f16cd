package iptablescmd

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/tests/capture"
)

// world is another network namespace at the end of a cable; the pod is 10.77.0.1.
func world(t *testing.T) netns.NsHandle {
	t.Helper()
	pod, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	w, err := netns.New() // and enters it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close(); w.Close() })
	script := func(text string) {
		if out, err := exec.Command("sh", "-ec", text).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	script("ip link set lo up; ip route add local 0.0.0.0/1 dev lo; ip route add local 128.0.0.0/1 dev lo")
	in(t, pod)
	script(fmt.Sprintf(`ip link add eth0 type veth peer name wire netns /proc/%d/task/%d/fd/%d
		ip addr add 10.77.0.1/24 dev eth0; ip link set eth0 up`, os.Getpid(), unix.Gettid(), int(w)))
	in(t, w)
	script("ip addr add 10.77.0.2/24 dev wire; ip link set wire up")
	in(t, pod)
	script("ip route add default via 10.77.0.2")
	return w
}

func in(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

// serves answers each connection to these ports with its name.
func serves(t *testing.T, name string, ports ...string) {
	t.Helper()
	for _, port := range ports {
		l, err := net.Listen("tcp4", ":"+port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, name)
				c.Close()
			}
		}()
	}
}

// lands returns who answers a user at an address.
func lands(uid int, address string) string {
	unix.SetfsuidRetUid(uid) // of this thread: rules go by who made the socket
	defer unix.SetfsuidRetUid(0)
	c, err := net.DialTimeout("tcp4", address, 3*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	name, _ := io.ReadAll(c)
	return string(name)
}

// The command line of the manual, as it is written there.
const manual = "-p 15001 -z 15006 -u 1337 -m REDIRECT -i 172.1.1.2/32 -x 192.168.0.1/32,172.1.1.1/32 -b * -d 15090,15021,15081,9191,7013,7014 -o 7011,7012 -q 7015,7016"

func TestTheManualsCommandLine(t *testing.T) {
	for _, binary := range []string{"nft", "legacy"} {
		t.Run(binary, func(t *testing.T) {
			capture.NewPod(t)
			pod, err := netns.Get()
			if err != nil {
				t.Fatal(err)
			}
			defer pod.Close()
			outside := world(t)
			serves(t, "15001", "15001")
			serves(t, "15006", "15006")
			serves(t, "app", "4000", "9191", "7014")
			in(t, outside)
			serves(t, "direct", "80", "7011", "7012", "7015", "7016")
			in(t, pod)

			args := append(strings.Fields(manual), "--force-iptables-binary", binary, "--run-validation")
			_, stderr, err := invocation{addrs: []string{"10.77.0.1"}}.run(t, args...)
			var status *cli.StatusError // Envoy is there, in the form of our servers
			if err != nil || errors.As(err, &status) {
				t.Fatal(err, stderr)
			}
			for _, tt := range []struct {
				uid           int
				address, want string
			}{
				{0, "172.1.1.2:80", "15001"}, {1000, "172.1.1.2:80", "15001"}, {1337, "172.1.1.2:80", "direct"},
				{1000, "172.1.1.1:80", "direct"}, {1000, "9.9.9.9:80", "direct"}, {1000, "172.1.1.2:7011", "direct"}, {1000, "172.1.1.2:7012", "direct"},
				{1000, "9.9.9.9:7015", "15001"}, {0, "9.9.9.9:7016", "15001"}, {1000, "192.168.0.1:7015", "direct"}, {1337, "9.9.9.9:7016", "direct"},
				{1000, "127.0.0.1:4000", "app"}, {1337, "127.0.0.1:4000", "app"}, {1337, "10.77.0.1:4000", "15006"},
			} {
				if got := lands(tt.uid, tt.address); got != tt.want {
					t.Errorf("uid %d to %s lands at %q, want %q", tt.uid, tt.address, got, tt.want)
				}
			}
			in(t, outside)
			for address, want := range map[string]string{"10.77.0.1:4000": "15006", "10.77.0.1:9191": "app", "10.77.0.1:7014": "app"} {
				if got := lands(0, address); got != want {
					t.Errorf("inbound to %s lands at %q, want %q", address, got, want)
				}
			}
		})
	}
}

// From elsewhere, into a namespace that a file names.
func TestCaptureInAnotherNamespace(t *testing.T) {
	for _, mode := range [][]string{nil, {"--cni-mode", "--redirect-dns", "--force-iptables-binary=legacy"}} {
		t.Run(strings.Join(mode, " "), func(t *testing.T) {
			capture.NewPod(t)
			t.Setenv("XTABLES_LOCKFILE", "") // put back when the test ends
			pod, err := netns.Get()
			if err != nil {
				t.Fatal(err)
			}
			defer pod.Close()
			outside, err := netns.New()
			if err != nil {
				t.Fatal(err)
			}
			defer outside.Close()
			file := fmt.Sprintf("/proc/%d/task/%d/fd/%d", os.Getpid(), unix.Gettid(), int(pod))
			run := func(args ...string) {
				t.Helper()
				if _, stderr, err := (invocation{addrs: []string{"10.77.0.1"}}).run(t, append(args, "--network-namespace", file)...); err != nil {
					t.Fatal(err, stderr)
				}
			}
			run(append(mode, "-i", "*")...)
			if here := rulesInForce(t); strings.Contains(here, "ISTIO") {
				t.Errorf("rules in the wrong namespace:\n%s", here)
			}
			in(t, pod)
			there := rulesInForce(t)
			if !strings.Contains(there, "15001") || strings.Contains(there, "15053") != (mode != nil) {
				t.Errorf("not what was asked for:\n%s", there)
			}
			in(t, outside)
			run("--cleanup-only")
			in(t, pod)
			if left := rulesInForce(t); strings.Contains(left, "ISTIO") {
				t.Errorf("left behind:\n%s", left)
			}
		})
	}
}

func TestValidationFails(t *testing.T) {
	capture.NewPod(t)
	began := time.Now()
	_, _, err := invocation{addrs: []string{"10.77.0.1"}}.run(t, "--skip-rule-apply", "--run-validation", "--probe-timeout", "100ms")
	var status *cli.StatusError
	if !errors.As(err, &status) || status.Status != 126 || !strings.Contains(err.Error(), "127.0.0.6:15002") {
		t.Errorf("exit status 126 and what was seen, not %v", err)
	}
	if took := time.Since(began); took < 100*time.Millisecond {
		t.Errorf("gave up after %v", took)
	}
	if rules := rulesInForce(t); strings.Contains(rules, "ISTIO") {
		t.Errorf("applied all the same:\n%s", rules)
	}
}

func TestEnterNamespaceAndLeave(t *testing.T) {
	capture.NewPod(t)
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	other, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	in(t, own)
	leave, err := enterNamespace(fmt.Sprintf("/proc/%d/task/%d/fd/%d", os.Getpid(), unix.Gettid(), int(other)))
	if err != nil {
		t.Fatal(err)
	}
	if now, err := netns.Get(); err != nil || !now.Equal(other) {
		t.Error("not in the other namespace", err)
	}
	leave()
	if now, err := netns.Get(); err != nil || !now.Equal(own) {
		t.Error("not back in its own namespace", err)
	}
}
