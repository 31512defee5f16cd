package e2e_test

import (
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/iptables"
	"understudy.mesh/tests/lab"
)

// captureTransparently is the init step in TPROXY mode, with the routes that it needs.
func captureTransparently(t *testing.T, n *lab.Namespace, edit func(*iptables.Config)) {
	t.Helper()
	c := iptables.Default()
	c.TPROXY, c.IPv6 = true, true
	c.InboundPorts.All, c.ExcludeInboundPorts, c.IncludeCIDRs.All = true, []uint16{15090, 15021, 15020}, true
	c.DNS = iptables.DNS{Capture: true, All: true}
	edit(&c)
	must(t, c.Validate())
	must(t, n.Do(func() error { return iptables.Apply(t.Context(), c, slog.New(slog.DiscardHandler)) }))
}

const transparentEnv = "ISTIO_META_INTERCEPTION_MODE=TPROXY"

// TestTransparentInbound: with TPROXY the application sees its clients' addresses, and
// everything else is as with REDIRECT; both for root, as Istio's template has it, and
// for the usual user whose program's file has the capability.
func TestTransparentInbound(t *testing.T) {
	for name, options := range map[string]lab.AgentOptions{
		"root":          {Caps: []string{"net_admin"}, Env: []string{transparentEnv}},
		"the user 1337": {UID: lab.AgentUID, Caps: []string{"net_raw"}, Env: []string{transparentEnv}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPod(t, podOptions{noCapture: true, noAgent: true, files: map[string]string{"mesh.yaml": aliyunHTTP}})
			captureTransparently(t, p.Pod, func(*iptables.Config) {})
			p.agent = p.c.StartAgent(t, options)
			p.agent.WaitReady(t)
			p.serveTransparently(t)
			p.checkTransparent(t)
		})
	}
}

// TestTransparentSocketsChangeHands: the sockets that a crash or an upgrade leaves to the
// next Envoy are transparent ones.
func TestTransparentSocketsChangeHands(t *testing.T) {
	p := newPod(t, podOptions{noCapture: true, noAgent: true, files: map[string]string{"mesh.yaml": aliyunHTTP}})
	captureTransparently(t, p.Pod, func(*iptables.Config) {})
	options := lab.AgentOptions{
		UID: lab.AgentUID, Caps: []string{"net_raw"}, Env: []string{transparentEnv}, Args: []string{"--handoffDir", "/var/lib/istio/data"},
	}
	p.agent = p.c.StartAgent(t, options)
	p.agent.WaitReady(t)
	p.serveTransparently(t)
	p.checkTransparent(t)

	crashed := p.agent.EnvoyPID()
	must(t, syscall.Kill(crashed, syscall.SIGKILL))
	eventually(t, "another Envoy after the crash", func() error {
		if pid := p.agent.EnvoyPID(); pid == 0 || pid == crashed {
			return fmt.Errorf("Envoy is %d", pid)
		}
		return p.agent.Ready()
	})
	p.checkTransparent(t)

	next := p.c.StartAgent(t, options)
	eventually(t, "the newcomer has taken over", func() error {
		return contains(next.Log.String(), "the generation before has let go")
	})
	p.agent.Signal(syscall.SIGTERM)
	p.agent.Wait(t, lab.Deadline)
	p.agent = next
	p.checkTransparent(t)
}

func (p *pod) serveTransparently(t *testing.T) {
	t.Helper()
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	lab.ServeTCP(p.Pod.Listen(t, "[::]:8081"), lab.Peer)
	lab.ServeHTTP(t, p.Out.Listen(t, "[::]:80"), "outside")
}

func (p *pod) checkTransparent(t *testing.T) {
	t.Helper()
	for _, tt := range []struct{ from, to string }{
		{lab.OutIP, lab.PodIP}, {"198.51.100.77", lab.PodIP}, {lab.OutIPv6, lab.PodIPv6}, {"2001:db8::77", lab.PodIPv6},
	} {
		for _, port := range []string{"8080", "8081"} {
			peer, err := seenPeer(t, p.Out, tt.from, net.JoinHostPort(tt.to, port), port == "8080")
			if err != nil || peer != tt.from {
				t.Errorf("from %s to port %s of %s: the application sees %q (%v)", tt.from, port, tt.to, peer, err)
			}
		}
	}
	if got := get(t, dial(t, p.Pod, net.JoinHostPort(lab.PodIP, "8080")), "app"); got["server"] != "app" {
		t.Errorf("the pod calls itself: %v", got)
	}
	if got := get(t, p.dialHost(t, "aliyun.com", 80), "aliyun.com"); got["server"] != "outside" {
		t.Errorf("outbound: %v", got)
	}
	for _, port := range []string{"15001", "15006"} {
		mustRefuse(t, p.Out, net.JoinHostPort(lab.PodIP, port))
	}
}

// seenPeer returns the host that the application sees a client's connection from.
func seenPeer(t *testing.T, n *lab.Namespace, from, to string, http bool) (string, error) {
	t.Helper()
	c, err := n.DialFrom(t.Context(), "tcp", from, to)
	if err != nil {
		return "", err
	}
	defer c.Close()
	peer := ""
	if http {
		peer = get(t, c, "app")["peer"]
	} else if _, err := fmt.Fscanln(c, &peer); err != nil {
		return "", err
	}
	host, _, err := net.SplitHostPort(strings.TrimSpace(peer))
	return host, err
}
