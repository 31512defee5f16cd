package iptablescmd

import (
	"fmt"
	"slices"

	"understudy.mesh/iptables/rule"
)

// resolveConflicts decides between settings that contradict each other, and notes those
// without effect. It is no error, as Istio's init container accepts any two of them: none
// may stop a pod.
func (o *Options) resolveConflicts() {
	note := func(setting, why string) {
		o.ineffective = append(o.ineffective, fmt.Sprintf("%s has no effect: %s", setting, why))
	}
	c := &o.Config
	if o.native {
		if c.Backend != rule.Auto {
			note("--force-iptables-binary="+string(c.Backend), "--native-nftables runs no binary")
		}
		c.Backend = rule.Native
	}
	if o.cniMode && o.namespace == "" {
		o.cniMode = false
		note("--cni-mode", "it is for the pod's --network-namespace, of which there is none; the rules are for this one, whose resolv.conf is here")
	}
	if o.cniMode && c.DNS.Capture {
		c.DNS.All = true // as in Istio's CNI plugin: the resolv.conf here is not the pod's
	}
	if o.dryRun && o.Cleanup {
		note("--cleanup-only", "a dry run removes nothing; what would be removed depends on what is there, see iptables-save")
	}
	if o.dryRun && o.validate {
		o.validate = false
		note("--run-validation", "a dry run makes no rules to validate; for those in force use --skip-rule-apply")
	}
	if o.skipApply && o.forceApply {
		note("--force-apply", "--skip-rule-apply leaves the rules as they are")
	}
	if c.DNS.All && !c.DNS.Capture {
		note("--capture-all-dns", "no DNS is captured without --redirect-dns")
	}
	if c.DNS.Capture && slices.Contains(c.ExcludeOutboundPorts, 53) {
		note("--redirect-dns", "--istio-local-outbound-ports-exclude has port 53")
	}
	if len(c.IncludeGroups) > 0 && len(c.ExcludeGroups) > 0 {
		note("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "only the groups of ISTIO_OUTBOUND_OWNER_GROUPS are captured")
	}
	for _, p := range c.ExcludeInboundPorts {
		if slices.Contains(c.InboundPorts.List, p) {
			note(fmt.Sprintf("--istio-local-exclude-ports of port %d", p), "--istio-inbound-ports names it; take it out there")
		}
	}
}
