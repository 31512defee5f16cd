package iptables_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/iptables"
	"understudy.mesh/tests/capture"
)

// Where IPv6 is off, a pod has no address of it, so its rules are not asked for, and
// those of IPv4 are as elsewhere. If they are asked for nevertheless, that fails as a
// whole, and the message names the switch.
func TestIPv6IsOff(t *testing.T) {
	for _, b := range backends {
		t.Run(string(b), func(t *testing.T) {
			l := newLab(t)
			skipBackend(t, b)
			capture.Sh(t, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1")
			before := rulesNow(t)
			c := capture.Full()
			c.Backend = b
			err := iptables.Apply(t.Context(), c, capture.Quiet())
			if err == nil || !strings.Contains(err.Error(), "disable_ipv6") {
				t.Errorf("error does not name the sysctl: %v", err)
			}
			if d := cmp.Diff(before, rulesNow(t)); d != "" {
				t.Errorf("the failure changed something:\n%s", d)
			}
			c.IPv6 = false
			apply(t, c)
			inForce(t, c, b)
			l.check([]landing{
				{why: "outbound", uid: 1000, network: "tcp", address: "1.2.3.4:80", want: "15001"},
				{why: "DNS", uid: 1000, network: "udp", address: "9.9.9.9:53", want: "15053"},
				{why: "inbound", network: "tcp", address: capture.PodV4 + ":4000", want: "15006", fromWorld: true},
			})
			clean(t)
			if d := cmp.Diff(before, rulesNow(t)); d != "" {
				t.Errorf("cleaning does not give back what was there:\n%s", d)
			}
		})
	}
}
