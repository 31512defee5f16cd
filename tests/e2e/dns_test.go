package e2e_test

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// TestUpstreamDNSDead takes the real name server away: names of the mesh are still answered, all
// others get SERVFAIL within the forwarder's time-out, and come back with the server.
func TestUpstreamDNSDead(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		files: map[string]string{"mesh.yaml": documents(aliyun, static("s", "static.example", 81, "HTTP", "198.51.100.12", 8012))},
		agent: lab.AgentOptions{Env: []string{"DNS_FORWARD_TIMEOUT=1s"}},
	})
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.12:8012"), "static")
	p.dns.Stop()
	p.vip(t, "aliyun.com", dns.TypeA)
	if got := get(t, p.dialHost(t, "static.example", 81), "static.example"); got["server"] != "static" {
		t.Errorf("a host with a static endpoint: %v", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		start := time.Now()
		m, err := p.Pod.Exchange(network, net.JoinHostPort(lab.NameServer, "53"), "plain.example", dns.TypeA)
		if err != nil || m.Rcode != dns.RcodeServerFailure {
			t.Errorf("over %s with a dead server: %v, %v, want SERVFAIL", network, m, err)
		}
		t.Logf("SERVFAIL over %s after %v", network, time.Since(start))
	}
	if err := p.agent.Ready(); err != nil {
		t.Errorf("a dead name server makes the agent unready: %v", err)
	}
	revived := p.StartDNS(t, outside)
	eventually(t, "forwarding works again", func() error { _, err := p.Pod.Lookup("plain.example", dns.TypeA); return err })
	if revived.Queries("plain.example", "A") == 0 {
		t.Error("the answer did not come from the server")
	}
}

// TestSecondNameServer has a dead first name server: the next one answers.
func TestSecondNameServer(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{
		container: lab.ContainerOptions{ResolvConf: "nameserver 198.51.100.254\nnameserver " + lab.NameServerIPv6 + "\n"},
		agent:     lab.AgentOptions{Env: []string{"DNS_FORWARD_TIMEOUT=1s"}},
	})
	for _, network := range []string{"udp", "tcp"} {
		m, err := p.Pod.Exchange(network, "127.0.0.1:"+lab.DNSPort, "plain.example", dns.TypeAAAA)
		if err != nil || len(m.Answer) != 1 {
			t.Errorf("over %s: %v, %v", network, m, err)
		}
	}
	asked := p.dns.Queries("plain.example", "AAAA")
	if _, err := p.Pod.Exchange("udp", "[::1]:"+lab.DNSPort, "plain.example", dns.TypeAAAA); err != nil {
		t.Error(err)
	}
	if again := p.dns.Queries("plain.example", "AAAA"); again != asked {
		t.Errorf("a cached name was asked for again: %d, then %d times", asked, again)
	}
}

// TestDNSGarbage sends what is no query; the agent answers what can be answered, and lives.
func TestDNSGarbage(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": aliyun}})
	c, err := p.Pod.Dial(t.Context(), "udp", "127.0.0.1:"+lab.DNSPort)
	must(t, err)
	defer c.Close()
	for _, packet := range []string{"", "x", strings.Repeat("\x00", 12), strings.Repeat("\xff", 512),
		"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01", // a name that points at itself
		"\x00\x01\x01\x00\xff\xff\x00\x00\x00\x00\x00\x00",                         // 65535 questions, none there
	} {
		_, _ = c.Write([]byte(packet))
	}
	tcp := dial(t, p.Pod, "127.0.0.1:"+lab.DNSPort)
	send(t, tcp, "\xff\xffshort")
	_ = tcp.Close()
	p.vip(t, "aliyun.com", dns.TypeA)
}

// TestRegistryOnly refuses what the mesh does not know, and only that.
func TestRegistryOnly(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noAgent: true, files: map[string]string{"mesh.yaml": documents(aliyunHTTP, entry("one", "one.example", 3306, "TCP", "DNS"))}})
	p.c.WriteMeshConfig(t, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n")
	p.dns.Set("aliyun.com", "198.51.100.10")
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.10:80"), "aliyun")
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.40:80"), "plain")
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.40:25"), lab.Banner("220 plain"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: []string{"--meshConfig", lab.ConfigMount + "/mesh.yaml"}})
	p.agent.WaitReady(t)
	if got := get(t, p.dialHost(t, "aliyun.com", 80), "aliyun.com"); got["server"] != "aliyun" {
		t.Errorf("a host of the mesh: %v", got)
	}
	expect(t, p.dialHost(t, "one.example", 3306), "I am one\r\n")
	mustRefuse(t, p.Pod, "198.51.100.40:25")
	c := dial(t, p.Pod, "198.51.100.40:80")
	send(t, c, "GET / HTTP/1.1\r\nHost: plain.example\r\nConnection: close\r\n\r\n")
	answer := make([]byte, 12)
	// Istio answers HTTP to an unknown host with 502; a closed connection refuses as well.
	if n, _ := c.Read(answer); n > 0 && string(answer[:n]) != "HTTP/1.1 502" {
		t.Errorf("an unknown host answers %q", answer[:n])
	}
	if got := get(t, dial(t, p.Out, lab.PodIP+":8080"), "app"); got["server"] != "app" {
		t.Errorf("inbound: %v", got)
	}
}
