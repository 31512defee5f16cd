package e2e_test

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/tests/lab"
)

// TestStory is what an application's user sees of a mesh, told with curl: before capture, with
// it, and while the mesh changes.
func TestStory(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noCapture: true, noAgent: true, files: map[string]string{
		"aliyun.yaml": aliyun,
		"http.yaml":   aliyunHTTP,
		"tcp.yaml":    documents(entry("one", "one.example", 3306, "TCP", "DNS"), entry("two", "two.example", 3306, "TCP", "DNS")),
	}})
	p.c.WriteMeshConfig(t, "accessLogFile: /dev/stdout\n")
	s := newStory(t, p)

	if got := s.resolve("aliyun.com"); got != "198.51.100.10" {
		t.Fatalf("before capture aliyun.com resolves to %s", got)
	}
	p.Capture(t)
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: []string{"--meshConfig", lab.ConfigMount + "/mesh.yaml"}})
	p.agent.WaitReady(t)

	vip := s.resolve("aliyun.com")
	if !netip.MustParsePrefix("240.240.0.0/16").Contains(netip.MustParseAddr(vip)) {
		t.Fatalf("with capture aliyun.com resolves to %s, want a VIP", vip)
	}
	s.curl("aliyun-tls", vip, "https://aliyun.com/")
	s.curl("aliyun", vip, "http://aliyun.com/")
	s.proof()

	for host, banner := range map[string]string{"one.example": "I am one\r\n", "two.example": "I am two\r\n"} {
		expect(t, p.dialHost(t, host, 3306), banner)
	}
	s.addAndRemove()
	if got := s.resolve("plain.example"); got != "198.51.100.40" {
		t.Errorf("a name outside the mesh resolves to %s", got)
	}
	s.inbound()
	s.broken(vip)
}

// story is the application's container and what its checks share.
type story struct {
	t   *testing.T
	p   *pod
	app *lab.Container
}

func newStory(t *testing.T, p *pod) *story {
	t.Helper()
	ca := lab.NewCA(t)
	s := &story{t: t, p: p, app: p.NewContainer(t, lab.ContainerOptions{})}
	ca.WriteFile(t, filepath.Join(s.app.HostConfig, "ca.pem"))
	p.dns.Set("aliyun.com", "198.51.100.10") // one server each, so that it is clear who answers
	p.dns.Set("plain.example", "198.51.100.40")
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.10:80"), "aliyun")
	lab.ServeHTTP(t, tls.NewListener(p.Out.Listen(t, "198.51.100.10:443"), ca.Server(t, "aliyun.com")), "aliyun-tls")
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.40:80"), "plain")
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.22:3306"), lab.Banner("I am two"))
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	return s
}

// resolve is the address that the application's C library connects to first.
func (s *story) resolve(host string) string {
	s.t.Helper()
	got := s.app.Run(s.t, lab.As{UID: lab.AppUID}, "getent", "ahostsv4", host)
	words := strings.Fields(got.Stdout)
	if got.Code != 0 || len(words) == 0 {
		s.t.Fatalf("getent %s: %v", host, got)
	}
	return words[0]
}

// curl demands an answer of the given server, over a connection to addr ("" for any).
func (s *story) curl(server, addr, url string) {
	s.t.Helper()
	got := s.app.Run(s.t, lab.As{UID: lab.AppUID}, "curl", "-4sS", "--max-time", "10", "--cacert", lab.ConfigMount+"/ca.pem",
		"-w", "remote=%{remote_ip}\n", url)
	f := fields(got.Stdout)
	if got.Code != 0 || f["server"] != server || (addr != "" && f["remote"] != addr) {
		s.t.Errorf("curl %s: want server %s by %s: %v", url, server, addr, got)
	}
}

// proof demands that Envoy carried what curl saw: its counters and its access log say so.
func (s *story) proof() {
	s.t.Helper()
	eventually(s.t, "Envoy's counters and access log prove it", func() error {
		_, stats, err := s.p.Pod.Get("http://127.0.0.1:15000/clusters")
		if err != nil {
			return err
		}
		served := 0
		for line := range strings.Lines(stats) {
			if strings.Contains(line, "aliyun.com") && strings.Contains(line, "::198.51.100.10:") && strings.Contains(line, "::cx_total::") && !strings.HasSuffix(strings.TrimSpace(line), "::0") {
				served++
			}
		}
		if served != 2 {
			return fmt.Errorf("%d clusters of aliyun.com had connections, want 2", served)
		}
		return contains(s.p.agent.Log.String(), "198.51.100.10:443", "198.51.100.10:80", "GET /")
	})
}

// addAndRemove adds a ServiceEntry while everything runs, and takes it away.
func (s *story) addAndRemove() {
	s.t.Helper()
	s.p.c.Write(s.t, "plain.yaml", entry("plain", "plain.example", 80, "HTTP", "DNS"))
	eventually(s.t, "the added host has a VIP", func() error { return vipError(s.p, "plain.example") })
	s.curl("plain", s.resolve("plain.example"), "http://plain.example/")
	s.p.c.Remove(s.t, "plain.yaml")
	eventually(s.t, "the removed host is forwarded", func() error {
		if got := s.resolve("plain.example"); got != "198.51.100.40" {
			return fmt.Errorf("it resolves to %s", got)
		}
		return nil
	})
	s.curl("plain", "198.51.100.40", "http://plain.example/")
}

// inbound demands that a request from outside passes Envoy on its way to the application.
func (s *story) inbound() {
	s.t.Helper()
	got := get(s.t, dial(s.t, s.p.Out, lab.PodIP+":8080"), "app")
	if got["server"] != "app" || !strings.Contains(got["peer"], "127.0.0.6") {
		s.t.Errorf("inbound: %v, want the peer 127.0.0.6", got)
	}
}

// broken breaks a file: nothing changes, and it is named.
func (s *story) broken(vip string) {
	s.t.Helper()
	position := s.p.agent.Log.Len()
	s.p.c.Write(s.t, "http.yaml", strings.Replace(aliyunHTTP, "number: 80", "number: eighty", 1))
	s.p.agent.Log.WaitForAfter(s.t, position, `[^\n]*http\.yaml[^\n]*`)
	s.curl("aliyun", vip, "http://aliyun.com/")
	s.curl("aliyun-tls", vip, "https://aliyun.com/")
	if n := s.p.dns.Queries("aliyun.com", "A"); n > 100 {
		s.t.Errorf("the real server was asked %d times for aliyun.com: lookups go round in circles", n)
	}
}
