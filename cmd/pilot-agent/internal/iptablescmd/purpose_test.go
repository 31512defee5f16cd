package iptablescmd

import (
	"slices"
	"strings"
	"testing"

	"understudy.mesh/iptables"
)

// A purpose that no rule has, or a flag that does not exist, would explain nothing.
func TestPurposesAreThoseOfRules(t *testing.T) {
	whys := map[string]bool{}
	for _, edit := range []func(*iptables.Config){
		func(c *iptables.Config) {
			c.InboundPorts.All, c.ExcludeInboundPorts, c.IncludeCIDRs.All = true, []uint16{1}, true
			c.ExcludeCIDRs, c.ExcludeOutboundPorts, c.IncludeOutboundPorts = list("10.0.0.0/8"), []uint16{1}, []uint16{2}
			c.ExcludeInterfaces, c.VirtInterfaces, c.ExcludeGroups = []string{"a"}, []string{"b"}, []uint32{7}
			c.DNS.Capture, c.DNS.All, c.DropInvalid = true, true, true
		},
		func(c *iptables.Config) {
			c.InboundPorts.List, c.IncludeCIDRs.List, c.IncludeGroups = []uint16{1}, list("10.0.0.0/8"), []uint32{7}
		},
	} {
		c := iptables.Default()
		edit(&c)
		for _, r := range iptables.Rules(c) {
			whys[r.Why] = true
		}
	}
	var names []string
	for _, s := range settings(&Options{}) {
		names = append(names, "--"+s.flag)
		for _, v := range s.env {
			names = append(names, "$"+v)
		}
	}
	for purpose, setting := range purposeSettings() {
		if !whys[purpose] {
			t.Errorf("no rule is there for %q", purpose)
		}
		for name := range strings.SplitSeq(setting, ", ") {
			if !slices.Contains(names, name) {
				t.Errorf("%q: there is no setting %s", purpose, name)
			}
		}
	}
}
