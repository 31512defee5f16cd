package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// dnsCommand runs `pilot-agent dns ...` in the agent's container, as its user and with nothing in
// the environment.
func dnsCommand(t *testing.T, p *pod, line string) lab.Result {
	t.Helper()
	return p.c.Run(t, lab.As{UID: lab.AgentUID}, append([]string{lab.AgentPath, "dns"}, strings.Fields(line)...)...)
}

// TestDNSCommands follows one pod through a host that leaves and a name server that dies and comes
// back, by what the commands show.
func TestDNSCommands(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"aliyun.yaml": aliyun, "one.yaml": entry("one", "one.example", 3306, "TCP", "DNS")},
		agent: lab.AgentOptions{Env: []string{"UNDERSTUDY_DNS_TTL=1s", "DNS_FORWARD_TIMEOUT=1s"}},
	})
	p.dns.SetTTL(1)
	server := lab.NameServer + ":53"
	shows := func(line string, words ...string) {
		t.Helper()
		eventually(t, "dns "+line, func() error { return contains(dnsCommand(t, p, line).Output(), words...) })
	}
	asked := func(line, name string, words ...string) { // asks name, again and again, until that is shown
		t.Helper()
		eventually(t, "dns "+line, func() error {
			if _, err := p.Pod.Exchange("udp", "127.0.0.1:"+lab.DNSPort, name, dns.TypeA); err != nil {
				return err
			}
			return contains(dnsCommand(t, p, line).Output(), words...)
		})
	}
	asked("cache plain.example", "plain.example", "plain.example.", "NOERROR", "fresh", server)
	shows("upstreams", server, "healthy", "yes")

	vip := p.vip(t, "one.example", dns.TypeA).String()
	shows("vips", vip, "used for", "\nUsed: 2 of 65024. Kept back, as their host left: 0.")
	p.c.Remove(t, "one.yaml")
	shows("vips one.example", vip, "ago, for others in", "\nUsed: 1 of 65024. Kept back, as their host left: 1.")
	if got := dnsCommand(t, p, "table -o json"); got.Code != 0 || !json.Valid([]byte(got.Stdout)) || strings.Contains(got.Stdout, "one.example") {
		t.Errorf("the table without one.example: %v", got)
	}

	p.dns.Stop()
	asked("upstreams", "plain.example", server, "failing", "ago: ")
	shows("cache plain.example", "stale")
	asked("cache -o json", "other.example", `"name":"other.example.","type":"A","rcode":"SERVFAIL"`, `"failure":true`)
	p.StartDNS(t, outside)
	asked("upstreams", "two.example", server, "healthy", "ago: ")
	for _, line := range []string{"dns upstream is failing", "dns upstream is healthy again"} {
		if n := strings.Count(p.agent.Log.String(), line+"\tserver="+server); n != 1 {
			t.Errorf("%d lines %q of %s, want 1", n, line, server)
		}
	}
}

// TestDNSCommandsWithout has nobody to ask, and then somebody who has no DNS.
func TestDNSCommandsWithout(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noAgent: true, noCapture: true, files: map[string]string{"mesh.yaml": aliyun}})
	commands := []string{"lookup aliyun.com", "table", "cache", "vips -o json", "upstreams"}
	start := time.Now()
	if got := dnsCommand(t, p, "table"); got.Code != 1 || got.Stdout != "" || contains(got.Stderr, "is it running?") != nil {
		t.Errorf("without an agent: %v", got)
	}
	t.Logf("no agent after %v", time.Since(start))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Env: []string{"ISTIO_META_DNS_CAPTURE=false"}})
	p.agent.WaitReady(t)
	for _, line := range commands {
		want := "pilot-agent: DNS capture is off: set ISTIO_META_DNS_CAPTURE=true\n"
		if got := dnsCommand(t, p, line); got.Code != 1 || got.Stdout != "" || got.Stderr != want {
			t.Errorf("dns %s: %v, want %q", line, got, want)
		}
	}
}

// TestDNSCommandsOfManyNames lists what thousands of hosts make.
func TestDNSCommandsOfManyNames(t *testing.T) {
	t.Parallel()
	const hosts = 2000
	var docs []string
	for i := range hosts {
		docs = append(docs, entry(fmt.Sprintf("h%d", i), fmt.Sprintf("h%d.example", i), 80, "TCP", "STATIC")+"  endpoints: [{address: 198.51.100.40}]\n")
	}
	p := newPod(t, podOptions{noCapture: true, files: map[string]string{"mesh.yaml": documents(docs...)}})
	for line, want := range map[string]int{"table": hosts + 1, "vips": hosts + 3, "table h7.example": 2} {
		eventually(t, "dns "+line, func() error {
			if got := dnsCommand(t, p, line); strings.Count(got.Stdout, "\n") != want {
				return fmt.Errorf("%d lines, want %d; %s", strings.Count(got.Stdout, "\n"), want, got.Stderr)
			}
			return nil
		})
	}
}
