package iptables_test

import (
	"context"
	"fmt"
	"io"
	"math/bits"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// tproxyPort is where the transparent server of these tests listens; the lab's other
// servers have Envoy's ports.
const tproxyPort = 17006

func tproxyConfig() iptables.Config {
	c := capture.Full()
	c.TPROXY, c.InboundPort = true, tproxyPort
	return c
}

// serveRelay is Envoy in TPROXY mode: it accepts a connection for any destination and
// passes it on to that destination, from the client's own address and with a mark.
func serveRelay(network, address, mark string) error {
	n, err := strconv.ParseUint(mark, 0, 32)
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(network, "relay")
	transparent := transparentOption(version == "6")
	any := net.ListenConfig{Control: control(transparent)}
	l, err := any.Listen(context.Background(), "tcp"+version, address)
	if err != nil {
		return err
	}
	d := &net.Dialer{Timeout: probeTimeout, Control: control(transparent, sockOption{unix.SOL_SOCKET, unix.SO_MARK, int(n)})}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				go passOn(c, *d)
			}
		}
	}()
	return nil
}

func passOn(client net.Conn, d net.Dialer) {
	defer client.Close()
	from := *client.RemoteAddr().(*net.TCPAddr)
	from.Port = 0
	d.LocalAddr = &from
	app, err := d.Dial("tcp", client.LocalAddr().String())
	if err != nil {
		fmt.Fprintln(client, failure(err))
		return
	}
	defer app.Close()
	io.WriteString(client, "passed-on:")
	io.Copy(client, app)
}

// serveAddresses says which addresses a connection has.
func serveAddresses(_, address, _ string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			if c, err := l.Accept(); err == nil {
				fmt.Fprintf(c, "%v>%v\n", c.RemoteAddr().(*net.TCPAddr).IP, c.LocalAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}
	}()
	return nil
}

func TestTransparentProxyKeepsAddresses(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			c := tproxyConfig()
			c.Backend, c.Mark, c.RouteTable = b, 0x1234, 4321
			l.serve(l.pod, 0, "relay4", "0.0.0.0:17006", "0x1234", "relay6", "[::]:17006", "0x1234",
				"addresses", "[::]:4001", "", "addresses", "[::]:22222", "")
			c.ExcludeInboundPorts = []uint16{22, 22222}
			const fromWorld4, fromWorld6 = "10.77.0.2>10.77.0.1", "fd77::2>fd77::1"
			uncaptured := []landing{
				{why: "without rules", network: "tcp", address: capture.PodV4 + ":4001", want: fromWorld4, fromWorld: true},
				{why: "without rules", network: "tcp", address: "[" + capture.PodV6 + "]:4001", want: fromWorld6, fromWorld: true},
			}
			l.check(uncaptured)
			apply(t, c)
			l.check([]landing{
				{why: "through the proxy, with the client's address", network: "tcp", address: capture.PodV4 + ":4001", want: "passed-on:" + fromWorld4, fromWorld: true},
				{why: "through the proxy, with the client's address", network: "tcp", address: "[" + capture.PodV6 + "]:4001", want: "passed-on:" + fromWorld6, fromWorld: true},
				{why: "excluded inbound port", network: "tcp", address: capture.PodV4 + ":22222", want: fromWorld4, fromWorld: true},
				{why: "the application calls itself", uid: 1000, network: "tcp", address: capture.PodV4 + ":4001", want: "10.77.0.1>10.77.0.1"},
				{why: "application, to anywhere", uid: 1000, network: "tcp", address: "1.2.3.4:80", want: "15001"},
				{why: "application, to anywhere", uid: 1000, network: "tcp", address: "[2001:db8::1]:80", want: "15001"},
				{why: "the proxy", uid: capture.ProxyUID, network: "tcp", address: "1.2.3.4:80", want: "direct"},
			})
			clean(t)
			l.check(uncaptured)
		})
	}
}

// policyState is every policy rule and route besides those that every namespace has.
func policyState(t *testing.T) string {
	t.Helper()
	return capture.Sh(t, `for f in -4 -6; do ip $f rule; ip $f route show table all type local | grep default || true; done`)
}

func TestRoutesFollowTheRules(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		// A user's own, of which some look like ours.
		capture.Sh(t, `ip rule add fwmark 0x539/0xff lookup 133; ip rule add fwmark 0x7 lookup 99; ip route add local default dev lo table 99
			ip rule add from 10.9.9.9 fwmark 0x539 lookup 98; ip route add local default dev lo table 98`)
		before := rulesNow(t) + policyState(t)
		with := func(mark, table uint32, edit func(*iptables.Config)) iptables.Config {
			c := tproxyConfig()
			c.Backend, c.Mark, c.RouteTable = b, mark, table
			edit(&c)
			return c
		}
		same := func(*iptables.Config) {}
		for _, step := range []struct {
			why   string
			c     iptables.Config
			rules []string // of both families, without the priority
		}{
			{"first", with(1337, 133, same), []string{"fwmark 0x539 lookup 133", "fwmark 0x539 lookup 133"}},
			{"another mark", with(0xfffffffe, 133, same), []string{"fwmark 0xfffffffe lookup 133", "fwmark 0xfffffffe lookup 133"}},
			{"another table", with(0xfffffffe, 4294967295, same), []string{"fwmark 0xfffffffe lookup 4294967295", "fwmark 0xfffffffe lookup 4294967295"}},
			{"IPv4 only", with(1, 1, func(c *iptables.Config) { c.IPv6 = false }), []string{"fwmark 0x1 lookup 1"}},
			{"no inbound ports", with(1, 1, func(c *iptables.Config) { c.InboundPorts = iptables.Ports{} }), nil},
			{"again", with(1, 1, same), []string{"fwmark 0x1 lookup 1", "fwmark 0x1 lookup 1"}},
			{"REDIRECT", with(1, 1, func(c *iptables.Config) { c.TPROXY = false }), nil},
		} {
			apply(t, step.c)
			state := policyState(t)
			for _, want := range step.rules {
				if strings.Count(state, want+" proto 137") != len(step.rules) {
					t.Errorf("%s: want %d of %q:\n%s", step.why, len(step.rules), want, state)
				}
			}
			if n := strings.Count(state, "proto 137"); n != 2*len(step.rules) { // a rule and a route
				t.Errorf("%s: %d rules and routes of ours, want %d:\n%s", step.why, n, 2*len(step.rules), state)
			}
			apply(t, step.c)
			if d := cmp.Diff(state, policyState(t)); d != "" {
				t.Errorf("%s: applying again changed something:\n%s", step.why, d)
			}
		}
		apply(t, with(8, 8, same))
		clean(t)
		if d := cmp.Diff(before, rulesNow(t)+policyState(t)); d != "" {
			t.Errorf("after cleaning:\n%s", d)
		}
	})
}

func TestIstioRoutesAreTakenOver(t *testing.T) {
	const routes = `for f in -4 -6; do ip $f rule add fwmark 0x%[1]x lookup %[2]d; ip $f route add local default dev lo table %[2]d; done`
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		before := rulesNow(t) + policyState(t)
		for _, ids := range [][2]int{{1337, 133}, {77, 200}} {
			for _, c := range []iptables.Config{tproxyConfig(), capture.Full()} {
				capture.Istio(t, b)
				capture.InNamespace(t, b, fmt.Sprintf("%%[1]s-%%[2]s -t mangle -N ISTIO_TPROXY\n%%[1]s-%%[2]s -t mangle -A ISTIO_TPROXY -p tcp -j TPROXY --on-port 15006 --tproxy-mark %#x/0xffffffff\n", ids[0]),
					fmt.Sprintf("add table inet istio-proxy-mangle; add chain inet istio-proxy-mangle istio-tproxy; add rule inet istio-proxy-mangle istio-tproxy meta l4proto tcp counter tproxy to :15006 meta mark set %d accept", ids[0]))
				capture.Sh(t, fmt.Sprintf(routes, ids[0], ids[1]))
				apply(t, c)
				if n := strings.Count(policyState(t), "fwmark"); n != routed(c) {
					t.Errorf("%v: %d policy rules, want %d:\n%s", ids, n, routed(c), policyState(t))
				}
				clean(t)
				if d := cmp.Diff(before, rulesNow(t)+policyState(t)); d != "" {
					t.Errorf("%v: after cleaning:\n%s", ids, d)
				}
			}
		}
		// Without any trace, the same rule is a user's own.
		capture.Sh(t, fmt.Sprintf(routes, 1337, 133))
		own := policyState(t)
		clean(t)
		if d := cmp.Diff(own, policyState(t)); d != "" {
			t.Errorf("a user's own were changed:\n%s", d)
		}
	})
}

func TestFailurePutsRoutesBack(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		earlier := tproxyConfig()
		earlier.Backend = b
		apply(t, earlier)
		if b == rule.Native {
			capture.Istio(t, rule.NFT) // without these nothing of it can fail
		}
		before := rulesNow(t) + policyState(t)
		failing(t, "ip6tables-nft-restore", "ip6tables-legacy-restore")
		c := earlier
		c.Mark, c.RouteTable = 5, 55
		if err := iptables.Apply(t.Context(), c, capture.Quiet()); err == nil {
			t.Fatal("no error")
		}
		if d := cmp.Diff(before, rulesNow(t)+policyState(t)); d != "" {
			t.Errorf("the failure changed something:\n%s", d)
		}
	})
}

func TestRoutesThatCannotBeMade(t *testing.T) {
	capture.NewPod(t)
	capture.Sh(t, "ip link add d0 type veth peer name d1; ip link set d0 up; ip addr add 10.8.0.1/24 dev d0; ip route add default via 10.8.0.2 table 133")
	before := rulesNow(t) + policyState(t)
	err := iptables.Apply(t.Context(), tproxyConfig(), capture.Quiet())
	if err == nil || !strings.Contains(err.Error(), "somebody else") || !strings.Contains(err.Error(), "tproxy-route-table") {
		t.Errorf("error does not say what is in the way: %v", err)
	}
	if d := cmp.Diff(before, rulesNow(t)+policyState(t)); d != "" {
		t.Errorf("the failure changed something:\n%s", d)
	}
}

// A crash before the last step leaves the earlier routes, and none of the rules that
// say whose they are.
func TestRoutesOfACrashAreFound(t *testing.T) {
	capture.NewPod(t)
	before := policyState(t)
	capture.Sh(t, `for v in -4 -6; do
			ip $v rule add fwmark 9 lookup 9 protocol 137
			ip $v route add local default dev lo table 9 protocol 137
		done`)
	apply(t, tproxyConfig())
	if state := policyState(t); strings.Contains(state, "lookup 9") || strings.Contains(state, "table 9 ") {
		t.Errorf("left behind:\n%s", state)
	}
	clean(t)
	if d := cmp.Diff(before, policyState(t)); d != "" {
		t.Errorf("after cleaning:\n%s", d)
	}
}

// routed is how many IP versions have routes of their own for marked packets.
func routed(c iptables.Config) int { return bits.OnesCount8(uint8(c.Routed())) }
