package iptables_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// landing says where a packet ends: at Envoy (15001, 15006), the agent's DNS (15053),
// the application, or the world.
type landing struct {
	why              string
	uid              uint32
	network, address string
	want             string
	fromWorld        bool
}

var fullLandings = []landing{
	{why: "application, to anywhere", uid: 1000, network: "tcp", address: "1.2.3.4:80", want: "15001"},
	{why: "application, to anywhere", uid: 1000, network: "tcp", address: "[2001:db8::1]:80", want: "15001"},
	{why: "root is an application, too", uid: 0, network: "tcp", address: "1.2.3.4:80", want: "15001"},
	{why: "a VIP", uid: 1000, network: "tcp", address: "240.240.1.1:443", want: "15001"},
	{why: "the proxy", uid: capture.ProxyUID, network: "tcp", address: "1.2.3.4:80", want: "direct"},
	{why: "the proxy", uid: capture.ProxyUID, network: "tcp", address: "[2001:db8::1]:80", want: "direct"},
	{why: "excluded CIDR", uid: 1000, network: "tcp", address: "192.168.0.1:80", want: "direct"},
	{why: "excluded CIDR", uid: 1000, network: "tcp", address: "[2001:db8:dead::1]:80", want: "direct"},
	{why: "excluded port", uid: 1000, network: "tcp", address: "1.2.3.4:7011", want: "direct"},
	{why: "application to itself", uid: 1000, network: "tcp", address: "127.0.0.1:4000", want: "app"},
	{why: "application to itself", uid: 1000, network: "tcp", address: "[::1]:4000", want: "app"},
	{why: "application to itself", uid: 1000, network: "tcp", address: capture.PodV4 + ":4000", want: "app"},
	{why: "the proxy to its own pod", uid: capture.ProxyUID, network: "tcp", address: capture.PodV4 + ":4000", want: "15006"},
	{why: "the proxy to its own pod", uid: capture.ProxyUID, network: "tcp", address: "[" + capture.PodV6 + "]:4000", want: "15006"},
	{why: "the proxy to the application", uid: capture.ProxyUID, network: "tcp", address: "127.0.0.1:4000", want: "app"},
	{why: "a nameserver", uid: 1000, network: "udp", address: "9.9.9.9:53", want: "15053"},
	{why: "a nameserver", uid: 1000, network: "tcp", address: "9.9.9.9:53", want: "15053"},
	{why: "a nameserver", uid: 1000, network: "udp", address: "[2001:db8::53]:53", want: "15053"},
	{why: "a nameserver", uid: 0, network: "udp", address: "9.9.9.9:53", want: "15053"},
	{why: "the agent to a nameserver", uid: capture.ProxyUID, network: "udp", address: "9.9.9.9:53", want: "direct"},
	{why: "the agent to a nameserver", uid: capture.ProxyUID, network: "udp", address: "[2001:db8::53]:53", want: "direct"},
	{why: "another nameserver, UDP", uid: 1000, network: "udp", address: "8.8.8.8:53", want: "direct"},
	{why: "another nameserver, TCP", uid: 1000, network: "tcp", address: "8.8.8.8:53", want: "15001"},
	{why: "inbound", network: "tcp", address: capture.PodV4 + ":4000", want: "15006", fromWorld: true},
	{why: "inbound", network: "tcp", address: "[" + capture.PodV6 + "]:4000", want: "15006", fromWorld: true},
	{why: "excluded inbound port", network: "tcp", address: capture.PodV4 + ":22", want: "app", fromWorld: true},
	{why: "the mesh's tunnel", network: "tcp", address: capture.PodV4 + ":15008", want: "app", fromWorld: true},
}

var listedLandings = []landing{
	{why: "not listed", uid: 1000, network: "tcp", address: "1.2.3.4:80", want: "direct"},
	{why: "listed CIDR", uid: 1000, network: "tcp", address: "192.168.3.3:80", want: "15001"},
	{why: "listed CIDR", uid: 1000, network: "tcp", address: "[2001:db8:1::1]:80", want: "15001"},
	{why: "not listed", uid: 1000, network: "tcp", address: "[2001:db8:2::1]:80", want: "direct"},
	{why: "a VIP", uid: 1000, network: "tcp", address: "240.240.1.1:443", want: "15001"},
	{why: "a VIP", uid: 1000, network: "tcp", address: "[2001:2::1]:443", want: "15001"},
	{why: "listed port", uid: 1000, network: "tcp", address: "1.2.3.4:8443", want: "15001"},
	{why: "any nameserver", uid: 1000, network: "udp", address: "8.8.8.8:53", want: "15053"},
	{why: "a nameserver on loopback", uid: 1000, network: "udp", address: "127.0.0.1:53", want: "15053"},
	{why: "a nameserver on loopback", uid: 1000, network: "tcp", address: "127.0.0.1:53", want: "15053"},
	{why: "the agent to a nameserver", uid: capture.ProxyUID, network: "udp", address: "8.8.8.8:53", want: "direct"},
	{why: "listed inbound port", network: "tcp", address: capture.PodV4 + ":4000", want: "15006", fromWorld: true},
	{why: "other inbound port", network: "tcp", address: capture.PodV4 + ":22", want: "app", fromWorld: true},
}

func TestWherePacketsLand(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			before := l.landing(l.pod, 1000, "tcp", "1.2.3.4:80")
			if before != "direct" {
				t.Fatalf("without rules: %s", before)
			}
			for _, step := range []struct {
				config   iptables.Config
				landings []landing
			}{{capture.Full(), fullLandings}, {capture.Listed(), listedLandings}} {
				step.config.Backend = b
				if err := iptables.Apply(t.Context(), step.config, capture.Quiet()); err != nil {
					t.Fatal(err)
				}
				l.check(step.landings)
			}
			if err := iptables.Clean(t.Context(), capture.Quiet()); err != nil {
				t.Fatal(err)
			}
			l.check([]landing{
				{why: "cleaned", uid: 1000, network: "tcp", address: "240.240.1.1:443", want: "direct"},
				{why: "cleaned", uid: 1000, network: "udp", address: "9.9.9.9:53", want: "direct"},
				{why: "cleaned", network: "tcp", address: capture.PodV4 + ":4000", want: "app", fromWorld: true},
			})
		})
	}
}

func (l *lab) check(landings []landing) {
	l.t.Helper()
	for _, p := range landings {
		ns := l.pod
		if p.fromWorld {
			ns = l.world
		}
		if got := l.landing(ns, p.uid, p.network, p.address); got != p.want {
			l.t.Errorf("%s: uid %d, %s %s: lands at %q, want %q", p.why, p.uid, p.network, p.address, got, p.want)
		}
	}
}

// An init container has these two capabilities and no other, not even root's power
// over files.
func TestTwoCapabilitiesSuffice(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		capture.Sh(t, "GORACE=atexit_sleep_ms=0 setpriv --bounding-set=-all,+net_admin,+net_raw "+exe+" apply "+string(b))
		asWanted(t, func() iptables.Config { c := capture.Full(); c.Backend = b; return c }(), b)
	})
}

func TestWithoutPrivilege(t *testing.T) {
	capture.NewPod(t)
	before := rulesNow(t)
	out, err := self(1000, "apply", "").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "NET_ADMIN") || strings.Contains(string(out), "\n") {
		t.Errorf("as uid 1000: %v, %q", err, out)
	}
	if after := rulesNow(t); after != before {
		t.Errorf("changed: %s", after)
	}
}

// Each query and its answer must be one flow of conntrack: an answer in another zone
// shows as two flows that nobody replied to (istio#46935). Those of applications have a
// zone, the agent's own have none.
func TestQueriesAndAnswersShareAZone(t *testing.T) {
	if _, err := exec.LookPath("conntrack"); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	for name, edit := range map[string]func(*iptables.Config){
		"listed": func(*iptables.Config) {},
		"all":    func(c *iptables.Config) { c.DNS.All = true },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			c := capture.Full()
			edit(&c)
			apply(t, c)
			l.check([]landing{
				{why: "application", uid: 1000, network: "udp", address: "9.9.9.9:53", want: "15053"},
				{why: "agent", uid: capture.ProxyUID, network: "udp", address: "9.9.9.9:53", want: "direct"},
				{why: "application", uid: 1000, network: "udp", address: "[2001:db8::53]:53", want: "15053"},
				{why: "agent", uid: capture.ProxyUID, network: "udp", address: "[2001:db8::53]:53", want: "direct"},
			})
			flows := capture.Sh(t, "conntrack -L -f ipv4 -p udp; conntrack -L -f ipv6 -p udp")
			if strings.Contains(flows, "UNREPLIED") || strings.Count(flows, "dport=53 ") != 4 ||
				strings.Count(flows, "zone=") != 2 || strings.Count(flows, "zone=2 ") != 2 {
				t.Errorf("want two flows in zone 2 and two in none, all of them answered:\n%s", flows)
			}
		})
	}
}
