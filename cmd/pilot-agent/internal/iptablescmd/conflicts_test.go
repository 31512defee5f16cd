package iptablescmd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/tests/capture"
)

// What contradicts another setting is named, and the pod starts all the same.
func TestContradictionsAreSettled(t *testing.T) {
	for _, tt := range []struct {
		name    string
		environ []string
		args    []string
		warning string // "" is none
		prints  string // on standard output; "" is nothing
	}{
		{name: "native and nft", environ: []string{"FORCE_IPTABLES_BINARY=nft"}, args: []string{"--native-nftables", "-n"}, warning: "--force-iptables-binary=nft has no effect: --native-nftables", prints: "# nft -f -"},
		{name: "native and legacy", args: []string{"--force-iptables-binary", "legacy", "--native-nftables", "-n"}, warning: "--force-iptables-binary=legacy has no effect", prints: "# nft -f -"},
		{name: "not native", args: []string{"--force-iptables-binary", "legacy", "--native-nftables=false", "-n"}, prints: "# iptables-restore"},
		{name: "validation of nothing", args: []string{"--run-validation", "-n"}, warning: "--run-validation has no effect: a dry run makes no rules", prints: "# iptables-restore"},
		{name: "dry clean", args: []string{"-n", "--cleanup-only"}, warning: "--cleanup-only has no effect: a dry run removes nothing"},
		{name: "CNI, where?", environ: []string{"CNI_MODE=true"}, args: []string{"-n", "--redirect-dns"}, warning: "--cni-mode has no effect", prints: "-d 10.96.0.10/32"},
		{name: "no DNS at all", args: []string{"-n", "--capture-all-dns"}, warning: "--capture-all-dns has no effect: no DNS is captured without --redirect-dns", prints: "# iptables-restore"},
		{name: "DNS excluded", args: []string{"-n", "--redirect-dns", "-o", "53"}, warning: "--redirect-dns has no effect: --istio-local-outbound-ports-exclude has port 53", prints: "--dport 53"},
		{name: "both ways with groups", environ: []string{"ISTIO_OUTBOUND_OWNER_GROUPS=7", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=8"}, args: []string{"-n"}, warning: "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE has no effect", prints: "! --gid-owner 7"},
		{name: "a port both ways", args: []string{"-n", "-b", "80,81", "-d", "81,15090"}, warning: "--istio-local-exclude-ports of port 81 has no effect", prints: "--dports 80,81"},
		{name: "as the injector has it", args: []string{"-n", "-b", "80", "-d", "15090,15021"}, prints: "--dport 80"},
		{name: "applied and not", args: []string{"--skip-rule-apply", "--force-apply"}, warning: "--force-apply has no effect: --skip-rule-apply"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := invocation{addrs: []string{"10.1.1.1"}, environ: tt.environ, resolvConf: "nameserver 10.96.0.10\n"}
			stdout, stderr, err := pod.run(t, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if warns := strings.Contains(stderr, "has no effect"); warns != (tt.warning != "") || !strings.Contains(stderr, tt.warning) {
				t.Errorf("warns of %q, want %q", stderr, tt.warning)
			}
			if !strings.Contains(stdout, tt.prints) || (stdout == "") != (tt.prints == "") {
				t.Errorf("prints %q, want %q", stdout, tt.prints)
			}
		})
	}
}

// istiosSettings are all that Istio's init container takes, but the proxy's ids, each
// as a flag, or as a variable where there is no flag.
var istiosSettings = []string{
	"--envoy-port=16001", "--inbound-capture-port=16006", "--inbound-tunnel-port=16008", "--istio-inbound-ports=80,443", "--istio-inbound-ports=*",
	"--istio-local-exclude-ports=80,15090", "--istio-exclude-interfaces=eth1", "--istio-service-cidr=*", "--istio-service-cidr=10.0.0.0/8,127.1.2.3/32",
	"--istio-service-exclude-cidr=10.0.0.0/8", "--istio-outbound-ports=80,53", "--istio-local-outbound-ports-exclude=80,53", "--kube-virt-interfaces=eth1",
	"--istio-inbound-tproxy-mark=99", "--istio-inbound-tproxy-route-table=199", "--iptables-probe-port=15004", "--probe-timeout=20s",
	"--proxy-uid=1337,7", "--proxy-gid=1337,8", "--dual-stack=true", "--dual-stack=false", "--drop-invalid", "--istio-inbound-interception-mode=REDIRECT",
	"ISTIO_OUTBOUND_OWNER_GROUPS=7", "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE=7", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.1/8", "ENVOY_USER=java",
}

// istiosModes are those of them that say how and where the work is done. NAMESPACE is
// the test's own.
var istiosModes = []string{
	"--istio-inbound-interception-mode=TPROXY", "--redirect-dns", "--capture-all-dns", "--dry-run", "--skip-rule-apply", "--run-validation",
	"--reconcile", "--cleanup-only", "--force-apply", "--native-nftables", "--force-iptables-binary=nft", "--force-iptables-binary=legacy",
	"--network-namespace=NAMESPACE", "--cni-mode",
}

func (c invocation) with(settings ...string) (pod invocation, args []string) {
	for _, s := range settings {
		if strings.HasPrefix(s, "--") {
			args = append(args, s)
		} else {
			c.environ = append(slices.Clone(c.environ), s)
		}
	}
	return c, args
}

func TestAnyTwoSettingsAreTaken(t *testing.T) {
	all := append(slices.Clone(istiosSettings), istiosModes...)
	base := invocation{addrs: dualStackPod, resolvConf: "nameserver 10.96.0.10\n"}
	for i, setting := range all {
		for _, other := range all[i:] {
			pod, args := base.with(setting, other)
			if _, err := pod.options(t, args...); err != nil {
				t.Errorf("%s %s: %v", setting, other, err)
			}
		}
	}
}

// Any two ways to work end with success, unless what is validated was not made.
func TestAnyTwoModesWork(t *testing.T) {
	capture.NewPod(t)
	t.Setenv("XTABLES_LOCKFILE", "") // put back when the test ends
	own, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	file := fmt.Sprintf("/proc/self/task/%d/fd/%d", unix.Gettid(), int(own))
	base := invocation{addrs: []string{"10.1.1.1"}, resolvConf: "nameserver 10.96.0.10\n"}
	run := func(settings ...string) (stderr string, err error) {
		pod, args := base.with(settings...)
		for i := range args {
			args[i] = strings.Replace(args[i], "NAMESPACE", file, 1)
		}
		_, stderr, err = pod.run(t, args...)
		return stderr, err
	}
	for i, mode := range istiosModes {
		for _, other := range istiosModes[i:] {
			if stderr, err := run("--cleanup-only"); err != nil {
				t.Fatal(err, stderr)
			}
			stderr, err := run(mode, other)
			var status *cli.StatusError
			if pair := mode + other; strings.Contains(pair, "--skip-rule-apply") && strings.Contains(pair, "--run-validation") {
				if !errors.As(err, &status) || status.Status != exitValidation {
					t.Errorf("%s %s: %v, want exit status %d", mode, other, err, exitValidation)
				}
			} else if err != nil {
				t.Errorf("%s %s: %v\n%s", mode, other, err, stderr)
			}
		}
	}
}
