package iptables_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

const testMark = 0x5357

// landingMarked is landing for a socket of root's with a mark, 0 for none: the
// application and the proxy of these tests are one user.
func (l *lab) landingMarked(mark uint32, network, address string) string {
	l.t.Helper()
	return l.prober(l.pod).land([]probe{{network: network, to: netip.MustParseAddrPort(address), mark: mark}})[0]
}

// One user has both: without a mark it is the application, with it the proxy.
func TestMarkTellsProxyFromApplication(t *testing.T) {
	hairpin := capture.PodV4 + ":4000"
	full := func() iptables.Config { c := capture.Full(); c.ProxyMark = testMark; return c }
	alone := func() iptables.Config { c := full(); c.UIDs, c.GIDs = nil, nil; return c }
	shared := func() iptables.Config { c := full(); c.UIDs, c.GIDs = []uint32{7}, []uint32{7}; return c }
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			for name, config := range map[string]iptables.Config{"mark alone": alone(), "besides an owner": shared()} {
				config.Backend = b
				if err := iptables.Apply(t.Context(), config, capture.Quiet()); err != nil {
					t.Fatal(name, err)
				}
				for _, p := range []struct {
					why              string
					mark             uint32
					network, address string
					want             string
				}{
					{"application, out", 0, "tcp", "1.2.3.4:80", "15001"},
					{"application with a mark of its own", testMark + 1, "tcp", "1.2.3.4:80", "15001"},
					{"proxy, out", testMark, "tcp", "1.2.3.4:80", "direct"},
					{"proxy, out", testMark, "tcp", "[2001:db8::1]:80", "direct"},
					{"application to itself", 0, "tcp", hairpin, "app"},
					{"application to itself", 0, "tcp", "127.0.0.1:4000", "app"},
					{"proxy to its own pod", testMark, "tcp", hairpin, "15006"},
					{"proxy to its own pod", testMark, "tcp", "[" + capture.PodV6 + "]:4000", "15006"},
					{"proxy to the application", testMark, "tcp", "127.0.0.1:4000", "app"},
					{"application, DNS", 0, "udp", "9.9.9.9:53", "15053"},
					{"application, DNS", 0, "tcp", "9.9.9.9:53", "15053"},
					{"agent, DNS", testMark, "udp", "9.9.9.9:53", "direct"},
					{"agent, DNS", testMark, "tcp", "9.9.9.9:53", "direct"},
				} {
					if got := l.landingMarked(p.mark, p.network, p.address); got != p.want {
						t.Errorf("%s: %s: mark %#x, %s %s: lands at %q, want %q", name, p.why, p.mark, p.network, p.address, got, p.want)
					}
				}
			}
		})
	}
}

// A query of the application and one of the proxy may have the same addresses and
// ports; the redirect of the first must not apply to the second.
func TestMarkedQueriesHaveAZoneOfTheirOwn(t *testing.T) {
	newLab(t)
	skipBackend(t, rule.NFT)
	c := capture.Full()
	c.UIDs, c.GIDs, c.ProxyMark, c.Backend = nil, nil, testMark, rule.NFT
	if err := iptables.Apply(t.Context(), c, capture.Quiet()); err != nil {
		t.Fatal(err)
	}
	ask := func(mark int) string {
		conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp4", capture.PodV4+":33333")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, mark) })
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(probeTimeout))
		conn.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.DNS.Servers[0], iptables.DNSPort)))
		buf := make([]byte, 64)
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return "error: " + err.Error()
		}
		return strings.TrimSpace(string(buf[:n]))
	}
	for range 2 {
		if got := ask(0); got != "15053" {
			t.Errorf("the application's query lands at %q", got)
		}
		if got := ask(testMark); got != "direct" {
			t.Errorf("the agent's query lands at %q", got)
		}
	}
}

func TestMarkMustNotBeTPROXYs(t *testing.T) {
	for _, mark := range []uint32{iptables.DefaultMark, iptables.DefaultMark + 1} {
		c := iptables.Default()
		c.ProxyMark = mark
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "want another") {
			t.Errorf("mark %d: %v", mark, err)
		}
	}
}
