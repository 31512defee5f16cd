package iptables

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// longChain returns a configuration with a long chain, and some that differ from it.
func longChain() (long Config, steps []Config) {
	long = fullConfig()
	for i := range 200 {
		long.ExcludeCIDRs = append(long.ExcludeCIDRs, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
	}
	with := func(cidrs ...[]netip.Prefix) Config {
		c := long
		c.ExcludeCIDRs = slices.Concat(cidrs...)
		return c
	}
	all, other := long.ExcludeCIDRs, prefixes("10.1.0.0/16", "2001:db8:beef::/48")
	steps = []Config{
		with(all[:100], all[101:]),              // one less
		with(all[:100], other, all[101:]),       // some more in its place
		with(all[1:]),                           // the first one
		with(all, other),                        // the last ones
		with(all),                               //
		with(all[:50], other, all[150:]),        // many
		with(all[:20], all[30:90], all[95:180]), // in several places
	}
	return long, steps
}

// In a long chain only what differs is written, and it goes where it belongs.
func TestChangesInALongChain(t *testing.T) {
	long, steps := longChain()
	eachBackend(t, func(t *testing.T, b Backend) {
		for i, c := range steps {
			c.Backend, long.Backend = b, b
			for _, turn := range []Config{c, long} {
				apply(t, turn)
				asWanted(t, turn, b)
				if t.Failed() {
					t.Fatalf("step %d", i)
				}
			}
		}
	})
}

func TestChangesOfALongChainSayWhatDiffers(t *testing.T) {
	long, steps := longChain()
	have, want := wanted(Rules(long), IPv4), wanted(Rules(steps[1]), IPv4)
	commands := string(planned(have, want))
	for _, line := range []string{"*nat\n-D ISTIO_OUTPUT 11", "-I ISTIO_OUTPUT 11", "-d 10.1.0.0/16", "COMMIT\n"} {
		if !strings.Contains(commands, line) {
			t.Errorf("no %q in\n%s", line, commands)
		}
	}
	if strings.Count(commands, "\n") != 4 {
		t.Errorf("says more than what differs:\n%s", commands)
	}
}
