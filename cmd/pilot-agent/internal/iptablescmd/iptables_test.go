package iptablescmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// invocation runs istio-iptables in a pod with the given addresses and resolv.conf.
type invocation struct {
	addrs      []string
	resolvConf string
	environ    []string
}

var dualStackPod = []string{"127.0.0.1", "10.1.1.1", "::1", "2001:db8::1"}

func (c invocation) host(t *testing.T) Host {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if c.resolvConf != "" {
		if err := os.WriteFile(path, []byte(c.resolvConf), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(name string) (string, error) {
		if name == "java" {
			return "2001", nil
		}
		return "", errors.New("unknown: " + name)
	}
	return Host{
		Addresses: func() (out []netip.Addr, err error) {
			for _, a := range c.addrs {
				out = append(out, netip.MustParseAddr(a))
			}
			return out, nil
		},
		resolvConf: path, LookupUser: ids, LookupGroup: ids,
	}
}

func (c invocation) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &cli.Env{Environ: c.environ, Stdout: &out, Stderr: &errs}
	cmd := newCommand(e, c.host(t), nil, &cobra.Command{Use: "istio-iptables", SilenceErrors: true, SilenceUsage: true})
	cmd.SetArgs(args)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// options returns what a command line means, without doing it.
func (c invocation) options(t *testing.T, args ...string) (*Options, error) {
	t.Helper()
	e := &cli.Env{Environ: c.environ, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}
	cmd := newCommand(e, c.host(t), nil, &cobra.Command{})
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	o, err := Parse(cmd.Flags(), c.environ, c.host(t))
	if err == nil {
		log, logErr := e.Log(cmd)
		if logErr != nil {
			t.Fatal(logErr)
		}
		err = o.Complete(log)
	}
	return o, err
}

func list(s string) []netip.Prefix {
	p, err := iptables.ParsePrefixList(s)
	if err != nil {
		panic(err)
	}
	return p
}

func TestCaptureSettings(t *testing.T) {
	pod := invocation{addrs: []string{"10.1.1.1"}, resolvConf: "search x\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver nonsense\n"}
	nameservers := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fe80::1")}
	for _, tt := range []struct {
		name    string
		addrs   []string
		environ []string
		args    []string
		edit    func(c *iptables.Config)
	}{
		{name: "defaults", edit: func(*iptables.Config) {}},
		{
			name: "the manual's command line",
			args: strings.Fields("-p 15001 -z 15006 -u 1337 -m REDIRECT -i 172.1.1.2/32 -x 192.168.0.1/32,172.1.1.1/32 -b * -d 15090,15021,15081,9191,7013,7014 -o 7011,7012 -q 7015,7016"),
			edit: func(c *iptables.Config) {
				c.IncludeCIDRs.List, c.ExcludeCIDRs = list("172.1.1.2/32"), list("192.168.0.1/32,172.1.1.1/32")
				c.InboundPorts.All, c.ExcludeInboundPorts = true, []uint16{15090, 15021, 15081, 9191, 7013, 7014}
				c.ExcludeOutboundPorts, c.IncludeOutboundPorts = []uint16{7011, 7012}, []uint16{7015, 7016}
			},
		},
		{
			name:    "environment",
			environ: []string{"INBOUND_CAPTURE_PORT=16006", "PROXY_UID=0,7", "ISTIO_INBOUND_PORTS=80,", "KUBE_VIRT_INTERFACES=tap0", "ISTIO_OUTBOUND_OWNER_GROUPS=java,202", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=127.0.0.1/8", "FORCE_IPTABLES_BINARY=legacy", "INVALID_DROP=true", "ISTIO_SERVICE_CIDR="},
			edit: func(c *iptables.Config) {
				c.InboundPort, c.UIDs, c.GIDs = 16006, []uint32{0, 7}, []uint32{0, 7}
				c.InboundPorts.List, c.VirtInterfaces = []uint16{80}, []string{"tap0"}
				c.IncludeGroups, c.LoopbackV4 = []uint32{2001, 202}, netip.MustParsePrefix("127.0.0.0/8")
				c.Backend, c.DropInvalid = rule.Legacy, true
			},
		},
		{
			name: "a flag wins", environ: []string{"ISTIO_SERVICE_CIDR=10.0.0.0/8", "REDIRECT_DNS=true"}, args: []string{"-i", "*", "--redirect-dns=false"},
			edit: func(c *iptables.Config) { c.IncludeCIDRs.All = true },
		},
		{
			name: "the proxy's user by name", environ: []string{"ENVOY_USER=java"},
			edit: func(c *iptables.Config) { c.UIDs, c.GIDs = []uint32{2001}, []uint32{2001} },
		},
		{
			name: "DNS by the proxy's own variable", environ: []string{"ISTIO_META_DNS_CAPTURE=true"},
			edit: func(c *iptables.Config) { c.DNS = iptables.DNS{Capture: true, Servers: nameservers} },
		},
		{
			name: "all DNS", args: []string{"--redirect-dns", "--capture-all-dns"},
			edit: func(c *iptables.Config) { c.DNS = iptables.DNS{Capture: true, All: true} },
		},
		{
			name: "VIPs among listed destinations", environ: []string{"ISTIO_META_DNS_CAPTURE=true", "ISTIO_META_DNS_AUTO_ALLOCATE=true"}, args: []string{"-i", "10.0.0.0/8"},
			edit: func(c *iptables.Config) {
				c.DNS = iptables.DNS{Capture: true, Servers: nameservers}
				c.IncludeCIDRs.List = list("10.0.0.0/8,240.240.0.0/16,2001:2::/48")
			},
		},
		{
			name: "no VIPs without DNS", environ: []string{"ISTIO_META_DNS_AUTO_ALLOCATE=true"}, args: []string{"-i", "10.0.0.0/8"},
			edit: func(c *iptables.Config) { c.IncludeCIDRs.List = list("10.0.0.0/8") },
		},
		{
			name: "the proxy by its mark only", environ: []string{"PROXY_MARK=0x5357", "PROXY_UID=none"},
			edit: func(c *iptables.Config) { c.UIDs, c.GIDs, c.ProxyMark = nil, nil, 0x5357 },
		},
		{
			name: "the proxy by mark and group", args: []string{"--proxy-mark", "77", "-u", "none", "-g", "1337"},
			edit: func(c *iptables.Config) { c.UIDs, c.ProxyMark = nil, 77 },
		},
		{
			name: "TPROXY", environ: []string{"ISTIO_INBOUND_INTERCEPTION_MODE=TPROXY", "ISTIO_INBOUND_TPROXY_ROUTE_TABLE=4294967295"}, args: []string{"-t", "0x7b"},
			edit: func(c *iptables.Config) { c.TPROXY, c.Mark, c.RouteTable = true, 123, 4294967295 },
		},
		{
			name: "marks are nothing to REDIRECT", args: []string{"-m", "REDIRECT", "-t", "0", "-r", "254"},
			edit: func(c *iptables.Config) { c.Mark, c.RouteTable = 0, 254 },
		},
		{name: "IPv4 first", addrs: dualStackPod, edit: func(c *iptables.Config) { c.IPv6 = true }},
		{name: "not dual stack", addrs: dualStackPod, args: []string{"--dual-stack=false"}, edit: func(*iptables.Config) {}},
		{name: "not dual stack by environment", addrs: dualStackPod, environ: []string{"ISTIO_DUAL_STACK=false"}, edit: func(*iptables.Config) {}},
		{name: "what is always so", args: []string{"--reconcile", "--force-apply", "-t", "1337", "-r", "133", "--probe-timeout", "5s"}, edit: func(*iptables.Config) {}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := pod
			p.environ = tt.environ
			if tt.addrs != nil {
				p.addrs = tt.addrs
			}
			o, err := p.options(t, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := iptables.Default()
			tt.edit(&want)
			if d := cmp.Diff(want, o.Config, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}), cmpopts.EquateEmpty()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestCaptureRefuses(t *testing.T) {
	for _, tt := range []struct {
		name    string
		addrs   []string
		environ []string
		args    []string
		want    []string // each in the error, all of them at once
		usage   bool     // the command line's fault: exit status 2
	}{
		{name: "every fault at once", environ: []string{"PROXY_UID=nobody-here", "DRY_RUN=maybe", "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=x"}, args: []string{"-p", "0", "-b", "80,65536", "-i", "10.0.0.0/33", "-x", "*", "--force-iptables-binary", "ebpf", "-c", "-j"}, usage: true,
			want: []string{`env PROXY_UID: id "nobody-here"`, `env DRY_RUN: "maybe": want true or false`, `env ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR: CIDR "x"`, `flag --envoy-port: port "0"`, `flag --istio-inbound-ports: port "65536"`, `flag --istio-service-cidr: CIDR "10.0.0.0/33"`, `flag --istio-service-exclude-cidr: CIDR "*"`, `flag --force-iptables-binary: "ebpf": want legacy or nft`, `flag --istio-exclude-interfaces: interface "-j"`}},
		{name: "loopback elsewhere", environ: []string{"ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR=10.0.0.0/8"}, usage: true, want: []string{"inside 127.0.0.0/8"}},
		{name: "nothing to know the proxy by", args: []string{"-u", "none"}, usage: true, want: []string{"no proxy uid, gid or mark"}},
		{name: "nobody", args: []string{"-u", ",", "-g", " "}, usage: true, want: []string{`flag --proxy-uid: "," names nobody`, `flag --proxy-gid: " " names nobody`}},
		{name: "no mark", environ: []string{"PROXY_MARK=0"}, usage: true, want: []string{`env PROXY_MARK: mark "0": want a number from 1`}},
		{name: "a mark of TPROXY mode", args: []string{"--proxy-mark=0x539"}, usage: true, want: []string{"proxy mark 0x539 (1337)", "want another"}},
		{name: "misspelt mode", args: []string{"-m", "TPROXI"}, usage: true, want: []string{`mode "TPROXI": want REDIRECT or TPROXY`}},
		{name: "TPROXY without a mark", args: []string{"-m", "TPROXY", "-t", "0", "-r", "254"}, usage: true, want: []string{"TPROXY mark 0: want 1 to 4294967294", "TPROXY route table 254: want 1 to 4294967295, but not 253 to 255"}},
		{name: "TPROXY with the last mark", args: []string{"-m", "TPROXY", "-t", "4294967295", "-r", "0"}, usage: true, want: []string{"TPROXY mark 4294967295", "TPROXY route table 0"}},
		{name: "no numbers", args: []string{"-t", "4294967296", "-r", "main"}, usage: true, want: []string{`flag --istio-inbound-tproxy-mark: "4294967296": want a number`, `flag --istio-inbound-tproxy-route-table: "main"`}},
		{name: "validation", args: []string{"--run-validation", "--probe-timeout", "0s", "--iptables-probe-port", "65536"}, usage: true, want: []string{`flag --probe-timeout: "0s"`, `flag --iptables-probe-port: port "65536"`}},
		{name: "no namespace, even to clean", args: []string{"--network-namespace", "/nowhere", "--cleanup-only"}, want: []string{"/nowhere", "no such file", "/proc/PID/ns/net"}},
		{name: "a namespace of another kind", args: []string{"--network-namespace", "/proc/self/ns/mnt"}, want: []string{"/proc/self/ns/mnt", "no file of a network namespace"}},
		{name: "no namespace at all", args: []string{"--network-namespace", "/dev/null"}, want: []string{"no file of a network namespace"}},
		{name: "a list from nowhere", args: []string{"-x", "@/nowhere"}, usage: true, want: []string{`flag --istio-service-exclude-cidr: read the value "@/nowhere"`, "no such file"}},
		{name: "no network", addrs: []string{"127.0.0.1"}, args: []string{"--dry-run"}, want: []string{"no interface has an address"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := invocation{addrs: tt.addrs, environ: tt.environ}
			if p.addrs == nil {
				p.addrs = []string{"10.1.1.1"}
			}
			stdout, _, err := p.run(t, tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not say %q:\n%v", want, err)
				}
			}
			var usage *cli.UsageError
			if got := errors.As(err, &usage); got != tt.usage {
				t.Errorf("blames the command line: %v, want %v", got, tt.usage)
			}
			if stdout != "" {
				t.Errorf("half done: %s", stdout)
			}
		})
	}
}

func TestCaptureWithoutNameservers(t *testing.T) {
	for _, text := range []string{"", "search example.com\n"} {
		stdout, stderr, err := invocation{addrs: []string{"10.1.1.1"}, resolvConf: text}.run(t, "--dry-run", "--redirect-dns")
		if err != nil || strings.Contains(stdout, "15053") || !strings.Contains(stderr, "DNS is not captured") {
			t.Errorf("resolv.conf %q: %v\n%s\n%s", text, err, stdout, stderr)
		}
	}
}

func TestCaptureFromAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cidrs")
	const many = 100_000
	var text strings.Builder
	for i := range many {
		fmt.Fprintf(&text, "10.%d.%d.%d\n", i>>15, i>>7&0xff, i<<1&0xff)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	stdout, _, err := invocation{addrs: []string{"10.1.1.1"}, environ: []string{"ISTIO_SERVICE_EXCLUDE_CIDR=@" + file}}.run(t, "-n", "-i", "*")
	if n := strings.Count(stdout, "excluded destination"); err != nil || n != many {
		t.Errorf("%d rules, %v", n, err)
	}
}

// The text of a dry run is what the binaries take.
func TestCaptureDryRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "rules")
	p := invocation{addrs: dualStackPod, resolvConf: "nameserver 10.96.0.10\n", environ: []string{"DRY_RUN_FILE_PATH=" + file}}
	stdout, stderr, err := p.run(t, "-n", "--dual-stack", "--redirect-dns", "-i", "*", "-b", "*", "--drop-invalid", "-m", "TPROXY")
	if err != nil || stderr != "" {
		t.Fatal(err, stderr)
	}
	written, err := os.ReadFile(file)
	if err != nil || string(written) != stdout {
		t.Errorf("DRY_RUN_FILE_PATH: %v\n%s", err, cmp.Diff(stdout, string(written)))
	}
	v4, v6, found := strings.Cut(stdout, "# ip6tables-restore --noflush\n")
	if !found || !strings.HasPrefix(v4, "# iptables-restore --noflush\n") {
		t.Fatalf("no two parts:\n%s", stdout)
	}
	for _, want := range []string{"ip rule add fwmark 0x539 lookup 133", "ip -6 route add local default dev lo table 133", "ip -6 address add ::6/128 dev lo nodad"} {
		if !strings.Contains(v6, "\n# "+want+"\n") {
			t.Errorf("does not say %q:\n%s", want, stdout)
		}
	}
	capture.NewPod(t)
	for binary, text := range map[string]string{"iptables-restore": v4, "ip6tables-restore": v6} {
		cmd := exec.Command(binary, "--noflush")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", binary, err, out)
		}
	}
}

func TestCaptureDryRunOfNFTables(t *testing.T) {
	p := invocation{addrs: dualStackPod, resolvConf: "nameserver 10.96.0.10\n"}
	stdout, stderr, err := p.run(t, "-n", "--native-nftables", "--redirect-dns", "-i", "*", "-b", "*", "-d", "15090,15021")
	if err != nil || stderr != "" || !strings.HasPrefix(stdout, "# nft -f -\n") {
		t.Fatal(err, stderr, stdout)
	}
	capture.NewPod(t)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(stdout)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	// What it says is what the command itself does.
	_, stderr, err = p.run(t, "--native-nftables", "--redirect-dns", "-i", "*", "-b", "*", "-d", "15090,15021")
	if err != nil || strings.Contains(stderr, "changed capture rules") {
		t.Error(err, stderr)
	}
}

func TestCaptureAndClean(t *testing.T) {
	capture.NewPod(t)
	p := invocation{addrs: dualStackPod, resolvConf: "nameserver 10.96.0.10\n"}
	for range 2 {
		if _, stderr, err := p.run(t, "--dual-stack", "--redirect-dns", "-i", "*", "-b", "*"); err != nil {
			t.Fatal(err, stderr)
		}
	}
	if rules := rulesInForce(t); strings.Count(rules, "-j ISTIO_OUTPUT\n") != 2 {
		t.Errorf("want one jump for each family:\n%s", rules)
	}
	// Neither other flags nor wrong ones matter.
	if _, stderr, err := p.run(t, "--cleanup-only", "-m", "TPROXY", "-p", "0"); err != nil {
		t.Fatal(err, stderr)
	}
	if rules := rulesInForce(t); strings.Contains(rules, "ISTIO") || strings.Contains(rules, "-A") {
		t.Errorf("left behind:\n%s", rules)
	}

	cmd := NewClean(&cli.Env{Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}, ThisHost(), nil)
	cmd.SetArgs(nil)
	if err := cmd.ExecuteContext(context.Background()); err != nil {
		t.Errorf("istio-clean-iptables with nothing to clean: %v", err)
	}
}

func rulesInForce(t *testing.T) string {
	t.Helper()
	var all []byte
	for _, binary := range []string{"iptables-legacy-save", "iptables-nft-save", "ip6tables-legacy-save", "ip6tables-nft-save"} {
		out, err := exec.Command(binary).Output()
		if err != nil {
			t.Fatal(binary, err)
		}
		all = append(all, out...)
	}
	return string(all)
}

func FuzzNameservers(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nnameserver ::1%lo\n nameserver\t1.1.1.1 #x\n")
	f.Fuzz(func(t *testing.T, text string) {
		seen := map[netip.Addr]bool{}
		for _, a := range nameservers(text) {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() || seen[a] {
				t.Errorf("%q: %v", text, a)
			}
			seen[a] = true
		}
	})
}
