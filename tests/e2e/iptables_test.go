package e2e_test

import (
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// rulesOf returns the netfilter state of the pod, without counters and comments.
func rulesOf(t *testing.T, l *lab.Lab) string {
	t.Helper()
	var kept strings.Builder
	volatile := regexp.MustCompile(`\[\d+:\d+\]`)
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(l.Pod.Run(t, save)) {
			if !strings.HasPrefix(line, "#") {
				kept.WriteString(volatile.ReplaceAllString(line, ""))
			}
		}
	}
	return kept.String()
}

// ours returns the lines of a rule set that are no bare table or built-in chain.
func ours(rules string) []string {
	var lines []string
	for line := range strings.Lines(rules) {
		if strings.HasPrefix(line, "-A") || strings.Contains(line, "ISTIO") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestIptables applies, applies again, and cleans by both commands.
func TestIptables(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	before := rulesOf(t, l)
	for _, clean := range [][]string{{"istio-clean-iptables"}, {"istio-iptables", "--cleanup-only"}} {
		for round := range 2 {
			if got := c.Iptables(t); got.Code != 0 {
				t.Fatalf("round %d: %v", round, got)
			}
		}
		applied := rulesOf(t, l)
		if n := strings.Count(applied, "-j REDIRECT --to-ports 15001"); n != 2 {
			t.Errorf("%d redirections to 15001 after applying twice, want one a family:\n%s", n, applied)
		}
		if got := c.Run(t, lab.InitUser(), append([]string{lab.AgentPath}, clean...)...); got.Code != 0 {
			t.Fatalf("%v: %v", clean, got)
		}
		if left := ours(rulesOf(t, l)); len(left) != 0 {
			t.Errorf("%v left:\n%s", clean, strings.Join(left, "\n"))
		}
	}
	if addrs := l.Pod.Run(t, "ip", "-o", "addr", "show", "dev", "lo"); strings.Contains(addrs, "::6/128") {
		t.Errorf("an address of ours is left on lo:\n%s", addrs)
	}
	if got := c.Iptables(t, "--dry-run"); got.Code != 0 || contains(got.Output(), "15001", "COMMIT") != nil {
		t.Errorf("--dry-run: %v", got)
	}
	if after := rulesOf(t, l); len(ours(before)) == 0 && len(ours(after)) != 0 {
		t.Errorf("--dry-run changed the rules:\n%s", after)
	}
}

// TestIptablesBadInput runs the init step where or with what it cannot work: nothing is applied,
// and the reason is named.
func TestIptablesBadInput(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{})
	for _, tc := range []struct {
		name  string
		as    lab.As
		args  []string
		words []string
	}{
		{"not root", lab.As{UID: lab.AppUID}, nil, []string{"uid 0"}},
		{"without capabilities", lab.As{UID: lab.RootUID}, nil, []string{"NET_ADMIN"}},
		{"bad port", lab.InitUser(), []string{"-p", "70000"}, []string{"70000"}},
		{"bad CIDR", lab.InitUser(), []string{"-i", "10.0.0.0/40"}, []string{"10.0.0.0/40"}},
		{"excluding everything", lab.InitUser(), []string{"-x", "*"}, []string{"*"}},
		{"bad uid", lab.InitUser(), []string{"-u", "nobody-has-this-name"}, []string{"nobody-has-this-name"}},
		{"bad port list", lab.InitUser(), []string{"-o", "1,x"}, []string{"x"}},
		{"bad interface", lab.InitUser(), []string{"-c", "-j ACCEPT"}, []string{"-j ACCEPT"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			argv := append([]string{lab.AgentPath, "istio-iptables", "-u", "1337", "-g", "1337", "-i", "*", "-b", "*"}, tc.args...)
			got := c.Run(t, tc.as, argv...)
			if err := contains(got.Output(), tc.words...); got.Code == 0 || err != nil {
				t.Errorf("want a failure that has %q: %v", tc.words, got)
			}
			if left := ours(rulesOf(t, l)); len(left) != 0 {
				t.Errorf("it left:\n%s", strings.Join(left, "\n"))
			}
		})
	}
}

// kernelWithout is an iptables-restore (or any of its kind) on a kernel that lacks xt_owner.
const kernelWithout = `#!/bin/sh
name=$(basename "$0")
case "$name" in
*restore*)
	input=$(cat)
	case "$input" in
	*"-m owner"*)
		echo "iptables-restore v1.8.9 (nf_tables): Couldn't load match 'owner': No such file or directory" >&2
		exit 2;;
	esac
	printf '%s\n' "$input" | exec /usr/sbin/"$name" "$@";;
esac
exec /usr/sbin/"$name" "$@"
`

// TestKernelLacksModule demands that the missing module is named and nothing half done stays; and
// that nf_tables itself, which needs none of these, is used where nobody has said which back end.
func TestKernelLacksModule(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	c := l.NewContainer(t, lab.ContainerOptions{Path: lab.ConfigMount + "/fake:/usr/sbin:/usr/bin:/sbin:/bin"})
	fakes := filepath.Join(c.HostConfig, "fake")
	must(t, os.Mkdir(fakes, 0o755))
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, variant := range []string{"", "-legacy", "-nft"} {
			must(t, os.WriteFile(filepath.Join(fakes, family+variant+"-restore"), []byte(kernelWithout), 0o755))
		}
	}
	for _, forced := range []string{"nft", "legacy"} {
		got := c.Iptables(t, "--force-iptables-binary", forced)
		if err := contains(got.Output(), "owner"); got.Code == 0 || err != nil {
			t.Errorf("%s: want a failure that names the module: %v", forced, got)
		}
		if left := ours(rulesOf(t, l)); len(left) != 0 {
			t.Errorf("%s: half done:\n%s", forced, strings.Join(left, "\n"))
		}
	}
	if got := c.Iptables(t); got.Code != 0 || contains(got.Output(), "owner") != nil {
		t.Errorf("want another back end, and the reason in the log: %v", got)
	}
	if got := c.Iptables(t, "--verify"); got.Code != 0 {
		t.Errorf("what is in force is not what was asked for: %v", got)
	}
}

// TestReservedPortThroughCapture takes the agent's ports out of the excluded ones, as a wrong
// manifest would: traffic to them is then captured, and must not be forwarded to them.
func TestReservedPortThroughCapture(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noCapture: true, noAgent: true})
	p.Capture(t, "-d", "")
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	for _, port := range []string{lab.AdminPort, lab.StatusPort, lab.DNSPort, lab.EnvoyStats} {
		for _, ip := range podAddrs {
			err := refused(t.Context(), p.Out, net.JoinHostPort(ip, port), "POST /quitquitquit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			if err != nil {
				t.Errorf("captured traffic to port %s of %s: %v", port, ip, err)
			}
		}
	}
	if status, _, err := p.Pod.Get("http://127.0.0.1:15020/healthz/ready"); err != nil || status != http.StatusOK {
		t.Errorf("the agent after that: %d, %v", status, err)
	}
}

// TestDualStackWithoutSetting applies the rules in a dual-stack pod whose manifest says nothing
// about it: every VIP that the agent gives out has to be captured, whatever its family.
func TestDualStackWithoutSetting(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noCapture: true, noAgent: true, files: map[string]string{"one.yaml": entry("one", "one.example", 3306, "TCP", "DNS")}})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:3306"), lab.Banner("I am one"))
	if got := p.NewContainer(t, lab.ContainerOptions{}).IptablesAs(t, lab.InitUser()); got.Code != 0 {
		t.Fatal(got)
	}
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		addrs, err := p.Pod.Lookup("one.example", qtype)
		if err != nil {
			t.Fatal(err)
		}
		for _, addr := range addrs {
			if err := reads(p, netip.AddrPortFrom(addr, 3306).String(), "I am one\r\n"); err != nil {
				t.Errorf("by %v: %v", addr, err)
			}
		}
	}
}
