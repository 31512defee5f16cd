package lab_test

import (
	"context"
	"crypto/tls"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
)

// TestContainer shows that the container is what the contract says an agent gets: its own root,
// read-only, and no capability.
func TestContainer(t *testing.T) {
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true})
	agent := lab.As{UID: lab.AgentUID}
	for _, tc := range []struct {
		script string
		code   int
	}{
		{"id -u | grep -qx 1337", 0},
		{"grep -q 'CapBnd:.*0000000000000000' /proc/self/status", 0},
		{"grep -q 'CapEff:.*0000000000000000' /proc/self/status", 0},
		{"echo x >/tmp/x", 2},
		{"echo x >/run/x", 2},
		{"echo x >/etc/x", 2},
		{"echo x >/config/x", 2},
		{"echo x >/etc/istio/proxy/x && echo x >/var/lib/istio/data/x && echo x >/dev/shm/x", 0},
		{"grep -q '^nameserver 198.51.100.53$' /etc/resolv.conf", 0},
		{"test $(pwd) = /", 0},
	} {
		if got := c.Run(t, agent, "sh", "-c", tc.script); got.Code != tc.code {
			t.Errorf("%s: want exit status %d: %v", tc.script, tc.code, got)
		}
	}
	initCaps := lab.As{UID: lab.RootUID, Caps: []string{"net_admin", "net_raw"}}
	if got := c.Run(t, initCaps, "sh", "-c", "grep CapEff /proc/self/status"); !strings.Contains(got.Stdout, "0000000000003000") {
		t.Errorf("capabilities of the init step: %v", got)
	}
}

// TestWire shows that pod and outside reach each other over both families.
func TestWire(t *testing.T) {
	l := lab.New(t)
	for _, addr := range []string{"198.51.100.10:80", "[2001:db8::10]:80"} {
		ln := l.Out.Listen(t, addr)
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, c.RemoteAddr().String())
		}()
		c, err := l.Pod.Dial(context.Background(), "tcp", addr)
		if err != nil {
			t.Fatalf("dial %s from the pod: %v", addr, err)
		}
		defer c.Close()
		seen, err := io.ReadAll(c)
		if err != nil || string(seen) != c.LocalAddr().String() {
			t.Errorf("server at %s saw %q (%v), want %s", addr, seen, err, c.LocalAddr())
		}
	}
}

// TestJanitor shows that a test process that is killed leaves nothing behind.
func TestJanitor(t *testing.T) {
	if os.Getenv("LAB_TEST_CHILD") != "" {
		l := lab.New(t)
		l.NewContainer(t, lab.ContainerOptions{})
		_, _ = io.WriteString(os.Stdout, "lab "+l.Pod.Name+" "+l.Dir+"\n")
		select {} // until it is killed
	}
	lab.New(t) // skips where labs cannot be made
	cmd := exec.Command(os.Args[0], "-test.run=^TestJanitor$")
	cmd.Env = append(os.Environ(), "LAB_TEST_CHILD=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := stdout.Read(buf)
	fields := strings.Fields(string(buf[:n]))
	if err != nil || len(fields) != 3 {
		t.Fatalf("child said %q: %v", buf[:n], err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	for _, path := range []string{filepath.Join("/run/netns", fields[1]), fields[2]} {
		lab.Eventually(t, lab.Deadline, path+" goes", func() error {
			if _, err := os.Lstat(path); err == nil {
				return os.ErrExist
			}
			return nil
		})
	}
}

// TestServers shows that the lab's servers work without anything between them and the pod, so
// that a failure with an agent is the agent's.
func TestServers(t *testing.T) {
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	server := l.StartDNS(t, map[string][]string{"aliyun.com": {"198.51.100.10", "2001:db8::10"}})
	ca := lab.NewCA(t)
	ca.WriteFile(t, filepath.Join(c.HostConfig, "ca.pem"))
	for _, ip := range []string{"198.51.100.10", "[2001:db8::10]"} {
		lab.ServeHTTP(t, l.Out.Listen(t, ip+":80"), "plain")
		lab.ServeHTTP(t, tls.NewListener(l.Out.Listen(t, ip+":443"), ca.Server(t, "aliyun.com")), "tls")
		lab.ServeTCP(l.Out.Listen(t, ip+":81"), lab.RawHTTP)
	}
	app := lab.As{UID: lab.AppUID}
	for _, tc := range []struct{ command, want string }{
		{"curl -4sS --cacert /config/ca.pem https://aliyun.com/x", "server=tls\nproto=HTTP/1.1\nmethod=GET\nhost=aliyun.com\nuri=/x\n"},
		{"curl -6sS http://aliyun.com/x", "server=plain\nproto=HTTP/1.1\n"},
		{"curl -4sS --http2-prior-knowledge http://aliyun.com/x", "server=plain\nproto=HTTP/2.0\n"},
		{"curl -4sS -H 'x-CasE: y' http://aliyun.com:81/x", "\r\nx-CasE: y\r\n"},
		{"dig +short aliyun.com AAAA", "2001:db8::10\n"},
		{"dig +tcp +short aliyun.com A", "198.51.100.10\n"},
		{"dig nobody.example A", "NXDOMAIN"},
		{"getent ahostsv4 aliyun.com", "198.51.100.10"},
	} {
		if got := c.Run(t, app, "sh", "-c", tc.command); got.Code != 0 || !strings.Contains(got.Stdout, tc.want) {
			t.Errorf("%s: want %q: %v", tc.command, tc.want, got)
		}
	}
	if n := server.Queries("aliyun.com", "AAAA"); n < 2 {
		t.Errorf("the server counted %d queries", n)
	}
	server.Stop()
	if _, err := l.Pod.Lookup("aliyun.com", dns.TypeA); err == nil {
		t.Error("a stopped server answers")
	}
}
