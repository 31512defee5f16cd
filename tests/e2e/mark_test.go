package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
)

const markEnv = "PROXY_MARK=0x5357"

// TestSharedUser: the application and the proxy are one user, and only the mark of its
// sockets tells the proxy.
func TestSharedUser(t *testing.T) {
	p := newPod(t, podOptions{noCapture: true, noAgent: true, files: map[string]string{
		"mesh.yaml": documents(aliyunHTTP, static("self", "self.example", 8080, "HTTP", lab.PodIP, 8080)),
	}})
	p.Capture(t, "-u", "none", "-g", "none", "--proxy-mark", "0x5357")
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Caps: []string{"net_admin"}, Env: []string{markEnv}})
	p.agent.WaitReady(t)
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	lab.ServeHTTP(t, p.Out.Listen(t, "[::]:80"), "outside")

	if got := get(t, dial(t, p.Pod, "198.51.100.11:80"), "http.example"); got["server"] != "outside" {
		t.Errorf("outbound to an unknown address: %v", got)
	}
	if got := get(t, p.dialHost(t, "aliyun.com", 80), "aliyun.com"); got["server"] != "outside" {
		t.Errorf("outbound to a host that Envoy looks up: %v", got)
	}
	// Its name is in the agent's table now, and Envoy looks it up again for the new port.
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.10:8000"), "outside too")
	p.c.Write(t, "later.yaml", entry("aliyun-later", "aliyun.com", 8000, "HTTP", "DNS"))
	vip := netip.AddrPortFrom(p.vip(t, "aliyun.com", dns.TypeA), 8000).String()
	eventually(t, "outbound to a host that Envoy looks up later", func() error {
		status, body, err := p.Pod.Get("http://" + vip + "/")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", status, body)
		}
		return err
	})
	if got := get(t, p.dialHost(t, "self.example", 8080), "self.example"); got["server"] != "app" {
		t.Errorf("the pod calls itself by a service: %v", got)
	}
	if got := get(t, dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8080")), "app"); got["server"] != "app" {
		t.Errorf("inbound: %v", got)
	}
	for _, network := range []string{"udp", "tcp"} {
		answer, err := p.Pod.Exchange(network, net.JoinHostPort(lab.NameServer, "53"), "http.example", dns.TypeA)
		if err != nil || len(answer.Answer) != 1 || !strings.Contains(answer.String(), "198.51.100.11") {
			t.Errorf("a name of the outside over %s: %v, %v", network, answer, err)
		}
	}
}

// TestCapabilityIsMissing: without it Envoy would live and every connection of the pod
// fail, so the agent ends at once and says what to do.
func TestCapabilityIsMissing(t *testing.T) {
	for _, tt := range []struct{ env, names string }{
		{markEnv, "environment: PROXY_MARK=21335"},
		{transparentEnv, "environment: ISTIO_META_INTERCEPTION_MODE=TPROXY"},
	} {
		t.Run(tt.env, func(t *testing.T) {
			p := newPod(t, podOptions{noCapture: true, noAgent: true})
			agent := p.c.StartAgent(t, lab.AgentOptions{Env: []string{tt.env}})
			if code := agent.Wait(t, 30*time.Second); code != 1 {
				t.Errorf("exit status %d, want 1", code)
			}
			if err := contains(agent.Log.String(), tt.names, "operation not permitted", "runAsUser 0", "NET_ADMIN"); err != nil {
				t.Error(err)
			}
			if strings.Contains(agent.Log.String(), "envoy ") {
				t.Error("Envoy was started all the same")
			}
		})
	}
}
