package iptablescmd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/pkg/contract"
)

const (
	cleanupFlag   = "cleanup-only"
	namespaceFlag = "network-namespace"
)

// Options is the command line of istio-iptables as values.
type Options struct {
	Config       iptables.Config
	dryRun       bool
	dryRunFile   string
	Cleanup      bool // remove all rules instead
	Given        bool // what to capture: by a flag, or a variable that only an init container has
	skipApply    bool
	validate     bool
	probePort    uint16
	probeTimeout time.Duration
	namespace    string // a file; "" is this process's own
	cniMode      bool
	verify       bool
	dualStack    bool
	autoAllocate bool
	native       bool // nf_tables without a binary; wins over Config.Backend
	forceApply   bool
	envoyUser    string
	host         Host
	ineffective  []string // settings that have no effect, and why
}

// setting is one input of istio-iptables: a flag, an environment variable, or
// both. Names and defaults are Istio's.
type setting struct {
	flag, short string
	env         []string // the first that is set counts
	def         string
	boolean     bool
	always      bool // also has an effect on cleaning up
	doc         string
	set         func(value string) error
}

// settings returns every setting, in the order of --help; each sets its part of o.
func settings(o *Options) []setting {
	text := func(flag, short, env, def, doc string, set func(string) error) setting {
		s := setting{flag: flag, short: short, def: def, doc: doc, set: set}
		if env != "" {
			s.env = []string{env}
		}
		return s
	}
	all := []setting{
		text("envoy-port", "p", "", "15001", "port of Envoy for outbound TCP", parsed(&o.Config.ProxyPort, iptables.ParsePort)),
		text("inbound-capture-port", "z", "INBOUND_CAPTURE_PORT", "15006", "port of Envoy for inbound TCP", parsed(&o.Config.InboundPort, iptables.ParsePort)),
		text("inbound-tunnel-port", "e", "INBOUND_TUNNEL_PORT", "15008", "port of the mesh's tunnel, never captured", parsed(&o.Config.TunnelPort, iptables.ParsePort)),
		text("", "", "ENVOY_USER", "istio-proxy", "", asIs(&o.envoyUser)),
		text("proxy-uid", "u", "PROXY_UID", "", "users whose traffic is not captured, or none (default: of $ENVOY_USER, or 1337)", o.setUIDs),
		text("proxy-gid", "g", "PROXY_GID", "", "groups whose traffic is not captured, or none (default: as --proxy-uid)", o.setGIDs),
		text("proxy-mark", "", "PROXY_MARK", "", "mark (SO_MARK) of sockets whose traffic is not captured; give the proxy the same", o.setProxyMark),
		text("istio-inbound-interception-mode", "m", "ISTIO_INBOUND_INTERCEPTION_MODE", "", "how inbound traffic gets to Envoy: REDIRECT (the default), or TPROXY, which keeps the client's address", o.setMode),
		text("istio-inbound-ports", "b", "ISTIO_INBOUND_PORTS", "", "inbound ports to capture, or *", parsed(&o.Config.InboundPorts, iptables.ParsePorts)),
		text("istio-local-exclude-ports", "d", "ISTIO_LOCAL_EXCLUDE_PORTS", "", "inbound ports not to capture, with -b *", parsed(&o.Config.ExcludeInboundPorts, iptables.ParsePortList)),
		text("istio-exclude-interfaces", "c", "ISTIO_EXCLUDE_INTERFACES", "", "interfaces whose traffic is not captured", parsed(&o.Config.ExcludeInterfaces, iptables.ParseInterfaceList)),
		text("istio-service-cidr", "i", "ISTIO_SERVICE_CIDR", "", "outbound destinations to capture, or *", parsed(&o.Config.IncludeCIDRs, iptables.ParsePrefixes)),
		text("istio-service-exclude-cidr", "x", "ISTIO_SERVICE_EXCLUDE_CIDR", "", "outbound destinations not to capture", o.setExcludeCIDRs),
		text("istio-outbound-ports", "q", "ISTIO_OUTBOUND_PORTS", "", "outbound ports to capture, to any destination", parsed(&o.Config.IncludeOutboundPorts, iptables.ParsePortList)),
		text("istio-local-outbound-ports-exclude", "o", "ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE", "", "outbound ports not to capture", parsed(&o.Config.ExcludeOutboundPorts, iptables.ParsePortList)),
		text("kube-virt-interfaces", "k", "KUBE_VIRT_INTERFACES", "", "interfaces of virtual machines, whose traffic is outbound", parsed(&o.Config.VirtInterfaces, iptables.ParseInterfaceList)),
		text("", "", "ISTIO_OUTBOUND_OWNER_GROUPS", "*", "", o.setIncludeGroups),
		text("", "", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "", "", parsed(&o.Config.ExcludeGroups, o.parseGroups)),
		text("", "", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.1/32", "", parsed(&o.Config.LoopbackV4, iptables.ParsePrefix)),
		text("", "", "DRY_RUN_FILE_PATH", "", "", asIs(&o.dryRunFile)),
	}
	return append(append(all, o.switches()...), o.modes()...)
}

// switches are the booleans, and the back end.
func (o *Options) switches() []setting {
	return []setting{
		{flag: "redirect-dns", env: []string{"REDIRECT_DNS", contract.DNSCaptureVariable}, doc: "send DNS queries to the agent", boolean: true, set: toggle(&o.Config.DNS.Capture)},
		{flag: "capture-all-dns", env: []string{"CAPTURE_ALL_DNS"}, doc: "with --redirect-dns: queries to any server, not just those of resolv.conf", boolean: true, set: toggle(&o.Config.DNS.All)},
		{env: []string{contract.DNSAllocateVariable}, boolean: true, set: toggle(&o.autoAllocate)},
		{flag: "drop-invalid", env: []string{"DROP_INVALID", "INVALID_DROP"}, doc: "drop packets that conntrack calls INVALID", boolean: true, set: toggle(&o.Config.DropInvalid)},
		{flag: "dual-stack", env: []string{"DUAL_STACK", contract.DualStackVariable}, def: "true", doc: "capture IPv6 too, when the pod's first address is IPv4", boolean: true, set: toggle(&o.dualStack)},
		{flag: "force-iptables-binary", env: []string{"FORCE_IPTABLES_BINARY"}, doc: "legacy or nft (default: where rules are already, else what is installed, else as --native-nftables)", set: o.setBackend},
		{flag: "native-nftables", env: []string{"NATIVE_NFTABLES"}, doc: "write the rules by nf_tables itself, without iptables or nft; --force-iptables-binary has no effect then", boolean: true, set: toggle(&o.native)},
		{flag: "dry-run", short: "n", env: []string{"DRY_RUN"}, doc: "print the rules, change nothing; needs no privilege", boolean: true, always: true, set: toggle(&o.dryRun)},
		{flag: cleanupFlag, env: []string{"CLEANUP_ONLY"}, doc: "remove all rules instead", boolean: true, always: true, set: toggle(&o.Cleanup)},
		{flag: "verify", doc: "compare with the rules in force instead: exit status 1 if they differ; see doctor capture", boolean: true, always: true, set: toggle(&o.verify)},
		{flag: "skip-rule-apply", env: []string{"SKIP_RULE_APPLY"}, doc: "check the settings only", boolean: true, set: toggle(&o.skipApply)},
		{flag: "reconcile", env: []string{"RECONCILE"}, doc: "accepted: rules of another configuration are always replaced", boolean: true, set: toggle(new(bool))},
		{flag: "force-apply", env: []string{"FORCE_APPLY"}, doc: "accepted: the rules are always checked and made right", boolean: true, set: toggle(&o.forceApply)},
	}
}

// modes say how and where the work is done.
func (o *Options) modes() []setting {
	return []setting{
		{flag: "istio-inbound-tproxy-mark", short: "t", env: []string{"ISTIO_INBOUND_TPROXY_MARK"}, def: "1337", doc: "TPROXY's mark on packets; the next number is used too", set: parsed(&o.Config.Mark, parseNumber)},
		{flag: "istio-inbound-tproxy-route-table", short: "r", env: []string{"ISTIO_INBOUND_TPROXY_ROUTE_TABLE"}, def: "133", doc: "TPROXY's route table", set: parsed(&o.Config.RouteTable, parseNumber)},
		{flag: "run-validation", env: []string{"RUN_VALIDATION"}, boolean: true, doc: "afterwards connect as the proxy does, and check where the rules send it; exit status 126 if that is wrong", set: toggle(&o.validate)},
		{flag: "iptables-probe-port", env: []string{"IPTABLES_PROBE_PORT"}, def: strconv.Itoa(inspect.DefaultProbePort), doc: "port that --run-validation connects to", set: parsed(&o.probePort, iptables.ParsePort)},
		{flag: "probe-timeout", env: []string{"PROBE_TIMEOUT"}, def: "5s", doc: "how long --run-validation tries", set: parsed(&o.probeTimeout, parseTimeout)},
		{flag: namespaceFlag, env: []string{"NETWORK_NAMESPACE"}, always: true, doc: "work in the network namespace of this file, for example /proc/PID/ns/net", set: asIs(&o.namespace)},
		{flag: "cni-mode", env: []string{"CNI_MODE"}, boolean: true, always: true, doc: "this is not the pod's container: its resolv.conf and the node's xtables lock do not count; with --network-namespace", set: toggle(&o.cniMode)},
	}
}

// AddFlags registers the flags of istio-iptables, in the order of --help.
func AddFlags(flags *pflag.FlagSet) {
	for _, s := range settings(&Options{}) {
		s.register(flags)
	}
}

func (s setting) register(flags *pflag.FlagSet) {
	if s.flag == "" {
		return
	}
	doc := s.doc
	if len(s.env) > 0 {
		doc += " [$" + strings.Join(s.env, ", $") + "]"
	}
	if s.boolean {
		flags.BoolP(s.flag, s.short, s.def == "true", doc)
		return
	}
	flags.StringP(s.flag, s.short, s.def, doc)
}

// value returns the setting's value, where it comes from, and whether it is given there, not
// the default. An empty environment variable counts as absent, as in Istio.
func (s setting) value(flags *pflag.FlagSet, environ map[string]string) (value, source string, given bool) {
	if s.flag != "" && flags.Changed(s.flag) {
		return flags.Lookup(s.flag).Value.String(), "flag --" + s.flag, true
	}
	for _, name := range s.env {
		if v := environ[name]; v != "" {
			return v, "env " + name, true
		}
	}
	if s.flag != "" {
		return flags.Lookup(s.flag).Value.String(), "flag --" + s.flag, false
	}
	return s.def, "env " + s.env[0], false
}

// fromFile returns the content of FILE for "@FILE", its lines as items of a list, and any
// other value unchanged. The kernel limits an argument or variable to 128 KiB
// (MAX_ARG_STRLEN, execve(2)), which is about 7,000 CIDRs.
func fromFile(v string) (string, error) {
	path, is := strings.CutPrefix(v, "@")
	if !is {
		return v, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the value %q names: %w", v, err)
	}
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ","), nil
}

// Parse reads every setting and reports all that are wrong at once. For cleaning up it
// ignores those that only shape rules: what is removed does not depend on them.
func Parse(flags *pflag.FlagSet, environ []string, host Host) (*Options, error) {
	vars := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		vars[k] = v
	}
	shared := []string{"env " + contract.DNSCaptureVariable, "env " + contract.DNSAllocateVariable, "env " + contract.DualStackVariable, "env INVALID_DROP", "env ENVOY_USER"}
	o := &Options{Config: iptables.Default(), host: host}
	var errs []error
	read := func(always bool) {
		for _, s := range settings(o) {
			if s.always != always {
				continue
			}
			v, source, given := s.value(flags, vars)
			o.Given = o.Given || given && s.flag != namespaceFlag && !slices.Contains(shared, source)
			v, err := fromFile(v)
			if err == nil {
				err = s.set(v)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", source, err))
			}
		}
	}
	read(true)
	if !o.Cleanup {
		read(false)
	}
	if o.Cleanup && o.verify {
		errs = append(errs, errors.New("flag --verify: there is nothing to compare with when --cleanup-only is given"))
	}
	o.resolveConflicts()
	err := errors.Join(errs...)
	if err == nil && !o.Cleanup {
		err = o.Config.Validate()
	}
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return o, nil
}
