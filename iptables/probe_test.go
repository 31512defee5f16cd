package iptables_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// soon is a time-out for what fails at once.
const soon = 100 * time.Millisecond

func TestProbe(t *testing.T) {
	eachBackend(t, func(t *testing.T, b rule.Backend) {
		defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
		for name, c := range map[string]iptables.Config{"full": capture.Full(), "listed": capture.Listed(), "TPROXY": func() iptables.Config { c := capture.Full(); c.TPROXY = true; return c }()} {
			c.Backend = b
			v4only := c
			v4only.IPv6 = false
			if err := inspect.Probe(t.Context(), v4only, inspect.DefaultProbePort, soon, capture.Quiet()); err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "as uid 1337 from 127.0.0.1 to 127.0.0.6:15002") {
				t.Errorf("%s: without rules: %v", name, err)
			}
			if err := inspect.Probe(t.Context(), c, inspect.DefaultProbePort, soon, capture.Quiet()); err == nil {
				t.Errorf("%s: without rules: no error", name)
			}
			apply(t, c)
			if err := inspect.Probe(t.Context(), c, inspect.DefaultProbePort, probeTimeout, capture.Quiet()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			clean(t)
		}
	})
}

func TestProbeSaysWhatItSees(t *testing.T) {
	capture.NewPod(t)
	c := capture.Full()
	apply(t, c)
	for _, tt := range []struct {
		name, rule string
		port       uint16
		edit       func(*iptables.Config)
		want       string
	}{
		{"IPv6 only fails", "ip6tables-nft -t nat -I OUTPUT -o lo -j RETURN", 15002, func(*iptables.Config) {}, "from ::1 to [::6]:15002 failed"},
		{"Envoy's other port", "iptables-nft -t nat -I OUTPUT -d 127.0.0.6 -p tcp -j REDIRECT --to-ports 15001", 15002, func(*iptables.Config) {}, "came to port 15001"},
		{"another destination", "iptables-nft -t nat -F OUTPUT; iptables-nft -t nat -I OUTPUT -d 127.0.0.6 -p tcp -j DNAT --to-destination 127.0.0.1:15006", 15003, func(c *iptables.Config) { c.InboundPort = 15007 }, "failed"},
		{"excluded port", "true", 7011, func(*iptables.Config) {}, "probe port 7011 has rules of its own"},
		{"DNS", "true", 53, func(*iptables.Config) {}, "probe port 53"},
	} {
		capture.Sh(t, tt.rule)
		wrong := c
		tt.edit(&wrong)
		if err := inspect.Probe(t.Context(), wrong, tt.port, soon, capture.Quiet()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestProbeBesideOthers(t *testing.T) {
	l := newLab(t) // whose servers have Envoy's ports
	c := capture.Full()
	if err := inspect.Probe(t.Context(), c, inspect.DefaultProbePort, soon, capture.Quiet()); err == nil {
		t.Error("without rules: no error")
	}
	apply(t, c)
	if err := inspect.Probe(t.Context(), c, inspect.DefaultProbePort, probeTimeout, capture.Quiet()); err != nil {
		t.Errorf("beside Envoy: %v", err)
	}
	if err := inspect.Probe(t.Context(), c, 4000, soon, capture.Quiet()); err == nil || !strings.Contains(err.Error(), "--iptables-probe-port") {
		t.Errorf("the probe port is the application's: %v", err)
	}
	enter(t, l.pod)
	for uid, want := range map[uint32]string{capture.ProxyUID: "", 1000: "CAP_SETUID"} {
		out, err := self(uid, "validate").CombinedOutput()
		if (err == nil) != (want == "") || !strings.Contains(string(out), want) {
			t.Errorf("as uid %d: %v: %s", uid, err, out)
		}
	}
}

func ExampleCommands() {
	c := iptables.Default()
	c.TPROXY, c.InboundPorts.All = true, true
	fmt.Println(strings.Join(iptables.Commands(c), "\n"))
	// Output:
	// ip rule add fwmark 0x539 lookup 133
	// ip route add local default dev lo table 133
}
