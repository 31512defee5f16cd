package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/pkg/config"
	"understudy.mesh/tests/capture"
)

// lookUp knows one user and one group.
func lookUp(name string) (id string, err error) {
	if name == "java" {
		return "2001", nil
	}
	return "", errors.New("unknown: " + name)
}

func TestTraceArguments(t *testing.T) {
	host := iptablescmd.Host{LookupUser: lookUp, LookupGroup: lookUp}
	for _, tt := range []struct {
		from, to string
		want     inspect.Flow
		fails    string
	}{
		{from: "uid:1000", to: "tcp://10.1.2.3:80", want: inspect.Flow{Local: true, UID: 1000, GID: 1000, Proto: rule.TCP, Dst: netip.MustParseAddrPort("10.1.2.3:80")}},
		{from: "uid:1000,gid:java,mark:0x10", to: "10.1.2.3:80", want: inspect.Flow{Local: true, UID: 1000, GID: 2001, Mark: 16, Proto: rule.TCP, Dst: netip.MustParseAddrPort("10.1.2.3:80")}},
		{from: "outside", to: "udp://[2001:db8::1]:53", want: inspect.Flow{Proto: rule.UDP, Dst: netip.MustParseAddrPort("[2001:db8::1]:53")}},
		{from: "outside,in:eth1", to: "tcp://[::ffff:10.1.1.1]:80", want: inspect.Flow{Proto: rule.TCP, In: "eth1", Dst: netip.MustParseAddrPort("10.1.1.1:80")}},
		{from: "10.9.9.9", to: "tcp://10.1.1.1:80", want: inspect.Flow{Proto: rule.TCP, Src: netip.MustParseAddrPort("10.9.9.9:0"), Dst: netip.MustParseAddrPort("10.1.1.1:80")}},
		{from: "[2001:db8::9]:999,in:eth0", to: "tcp://[2001:db8::1]:80", want: inspect.Flow{Proto: rule.TCP, In: "eth0", Src: netip.MustParseAddrPort("[2001:db8::9]:999"), Dst: netip.MustParseAddrPort("[2001:db8::1]:80")}},
		{from: "uid:nobody-here", to: "tcp://10.1.1.1:80", fails: `"uid:nobody-here" in "uid:nobody-here": id "nobody-here"`},
		{from: "uid:", to: "tcp://10.1.1.1:80", fails: "want one id"},
		{from: "uid:1,2", to: "tcp://10.1.1.1:80", fails: `"2" in "uid:1,2"`},
		{from: "uid:1,in:eth0", to: "tcp://10.1.1.1:80", fails: `"in:eth0"`},
		{from: "outside,gid:7", to: "tcp://10.1.1.1:80", fails: `"gid:7"`},
		{from: "inside", to: "tcp://10.1.1.1:80", fails: `"inside": want for example uid:1000`},
		{from: "outside", to: "tcp://10.1.1.1", fails: "want for example tcp://10.1.2.3:80"},
		{from: "outside", to: "tcp://:80", fails: "want for example"},
		{from: "outside", to: "http://10.1.1.1:80", fails: "want for example"},
		{from: "outside", to: "tcp://10.1.1.1:0", fails: `port "0"`},
	} {
		from, err := parseTraceFrom(tt.from, host)
		var to traceTo
		if err == nil {
			to, err = parseTraceTo(tt.to)
		}
		if tt.fails != "" {
			if err == nil || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s %s: error %v, want one with %q", tt.from, tt.to, err, tt.fails)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %s: %v", tt.from, tt.to, err)
			continue
		}
		got, ok := from.flow(to, to.addrs[0])
		if !ok || got != tt.want {
			t.Errorf("%s %s: %+v, want %+v", tt.from, tt.to, got, tt.want)
		}
	}
	client, _ := parseTraceFrom("10.9.9.9", host)
	if _, ok := client.flow(traceTo{}, netip.MustParseAddr("2001:db8::1")); ok {
		t.Error("an IPv4 client reaches an IPv6 address")
	}
}

func TestTraceNames(t *testing.T) {
	addrs := func(list ...string) (out []netip.Addr) {
		for _, s := range list {
			out = append(out, netip.MustParseAddr(s))
		}
		return out
	}
	r := resolver{
		pod: func() ([]netip.Addr, error) {
			return addrs("127.0.0.1", "10.1.1.1", "::1", "::6", "fe80::1", "2001:db8::1"), nil
		},
		agent: func(_ context.Context, name string) ([]netip.Addr, string, error) {
			switch name {
			case "mesh.example":
				return addrs("240.240.0.7", "240.240.0.8", "2001:2::7"), "vip", nil
			case "elsewhere.example":
				return nil, "", nil
			}
			return nil, "", errors.New("there is no agent")
		},
		system: func(_ context.Context, name string) ([]netip.Addr, error) {
			if name == "nowhere.example" {
				return nil, errors.New("no such host")
			}
			return addrs("5.6.7.8"), nil
		},
	}
	for _, tt := range []struct {
		host, said, fails string
		want              []netip.Addr
	}{
		{host: "10.2.2.2", want: addrs("10.2.2.2")},
		{host: "pod", want: addrs("10.1.1.1", "2001:db8::1")},
		{host: "mesh.example", said: "says the agent's DNS (vip)", want: addrs("240.240.0.7", "2001:2::7")},
		{host: "elsewhere.example", said: "by resolv.conf", want: addrs("5.6.7.8")},
		{host: "other.example", said: "there is no agent", want: addrs("5.6.7.8")},
		{host: "nowhere.example", fails: "no such host"},
	} {
		to, err := parseTraceTo("tcp://" + tt.host + ":80")
		if err == nil {
			err = to.resolve(t.Context(), r)
		}
		if (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%s: %v", tt.host, err)
		}
		if !slices.Equal(to.addrs, tt.want) || !strings.Contains(to.said, tt.said) {
			t.Errorf("%s: %v, %q", tt.host, to.addrs, to.said)
		}
	}
}

// What the proxy's container has in its environment says nothing of the init
// container's command line.
func TestCaptureGiven(t *testing.T) {
	e := &cli.Env{}
	for _, tt := range []struct {
		environ, args []string
		want          bool
	}{
		{},
		{environ: []string{"ISTIO_META_DNS_CAPTURE=true", "ISTIO_META_DNS_AUTO_ALLOCATE=true", "ISTIO_DUAL_STACK=true", "POD_NAME=x", "ISTIO_INBOUND_PORTS="}},
		{environ: []string{"ISTIO_INBOUND_PORTS=*"}, want: true},
		{args: []string{"-i", "*"}, want: true},
		{args: []string{"--output", "json", "--network-namespace", "/proc/1/ns/net"}, environ: []string{"NETWORK_NAMESPACE=/x"}},
	} {
		cmd := newCaptureCommand(e, iptablescmd.Host{})
		if err := cmd.ParseFlags(tt.args); err != nil {
			t.Fatal(err)
		}
		o, err := iptablescmd.Parse(cmd.Flags(), tt.environ, iptablescmd.ThisHost())
		if err != nil {
			t.Fatal(err)
		}
		if o.Given != tt.want {
			t.Errorf("%q %q: %v", tt.environ, tt.args, o.Given)
		}
	}
}

// loadGiven reads the settings of the command line alone.
func loadGiven(_ *cli.Env, cmd *cobra.Command, role config.Role) (*config.Config, []config.Warning, error) {
	return config.Load(config.Sources{Role: role, Flags: cli.GivenSettings(cmd), IsDir: func(string) bool { return true }})
}

// doctorIn runs a command line of doctor or istio-iptables as main does.
func doctorIn(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	e := &cli.Env{Environ: []string{"DRY_RUN="}, Stdout: &out, Stderr: &errs}
	root := &cobra.Command{Use: "pilot-agent", SilenceUsage: true, SilenceErrors: true}
	cli.AddSettings(root.PersistentFlags(), true)
	root.AddCommand(New(e, iptablescmd.ThisHost(), loadGiven), iptablescmd.New(e, iptablescmd.ThisHost(), Check))
	return e.Run(t.Context(), root, args), out.String(), errs.String()
}

// The story of a pod: nothing yet, all right, and something broken.
func TestDoctorInAPod(t *testing.T) {
	capture.NewPod(t)
	for _, line := range []string{"ip link set lo up", "ip link add eth0 type veth peer name peer0", "ip link set peer0 up", "ip addr add 10.77.0.1/24 dev eth0", "ip link set eth0 up", "ip route add default via 10.77.0.2"} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	rules := strings.Fields("-u 1337 -i * -b * -d 15090 -o 7011 -x 192.168.0.0/16")
	with := func(args ...string) []string { return slices.Concat(args, rules) }

	steps := []struct {
		before string // of the step: a command
		args   []string
		status int
		want   []string
	}{
		{"", []string{"doctor", "capture"}, 1, []string{"nothing is captured", "did the pod's init container run?"}},
		{"", with("istio-iptables", "--verify"), 1, []string{"IPv4: nothing is captured: iptables-nft has no rules of ours", "differences from flags and environment: 1"}},
		{"", with("istio-iptables"), 0, nil},
		{"", with("istio-iptables", "--verify"), 0, []string{"right: no difference from flags and environment"}},
		{"", with("doctor", "capture"), 0, []string{"right: no difference"}},
		{"", []string{"doctor", "capture"}, 1, []string{"outbound (IPv4): TCP to every destination -> Envoy, port 15001\n",
			"but not from the proxy (uid 1337; gid 1337); to ports 7011; to 192.168.0.0/16\n",
			"inbound: TCP to every port but 15090 -> Envoy, port 15006, by REDIRECT; never port 15008\n", "DNS: not captured\n",
			"nobody listens on tcp port 15001", "differences from the rules themselves: 2"}},
		{"", with("doctor", "capture", "-q", "99"), 1, []string{"IPv4 nat ISTIO_OUTPUT: missing: -p tcp --dport 99 -j ISTIO_REDIRECT (outbound port)"}},
		{"", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:80"}, 0, []string{"uid:1000,gid:1000 (assumed) -> tcp://1.2.3.4:80", "lands at Envoy, outbound (port 15001)",
			"decided by nat ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001", "because: every other destination (--istio-service-cidr)", "nobody listens on tcp port 15001"}},
		{"", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:7011"}, 0, []string{"lands at 1.2.3.4:7011 by interface eth0: not captured", "because: excluded outbound port (--istio-local-outbound-ports-exclude)"}},
		{"", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:80", "-v"}, 0, []string{"no: tcp --dport 7011", "no: owner --uid-owner 1337"}},
		{"", []string{"doctor", "trace", "outside", "tcp://pod:15090"}, 0, []string{"10.77.0.1:15090 in the pod itself: not captured", "excluded inbound port (--istio-local-exclude-ports)"}},
		{"", []string{"doctor", "trace", "10.77.0.2", "tcp://[2001:db8::1]:80"}, 1, []string{"no IP version in common"}},
		{"iptables-nft -t nat -I OUTPUT -p tcp -m statistic --mode random --probability 0.5 -j RETURN", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:80"}, 0,
			[]string{"cannot be evaluated: nat OUTPUT -p tcp -m statistic --mode random", "undecided", "lands at Envoy, outbound", "lands at 1.2.3.4:80 by interface eth0"}},
		{"iptables-nft -t nat -D OUTPUT 1", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:80", "-o", "json"}, 0, []string{`"decided": true`}},
		{"nft add table inet mine { chain out { type filter hook output priority 0; tcp dport 80 drop; }; }", []string{"doctor", "trace", "uid:1000", "tcp://1.2.3.4:80"}, 0,
			[]string{"not seen: the rules of nft table mine, chain out (IPv4 and IPv6)", "undecided"}},
		{"", with("doctor", "capture"), 0, []string{"not seen, and may take packets: the rules of nft table mine, chain out"}},
		{"iptables-nft -t nat -I OUTPUT -p udp -j RETURN", []string{"doctor", "capture"}, 1, []string{"a rule that is not ours takes packets before ours can: -p udp -j RETURN"}},
		{"iptables-nft -t nat -F ISTIO_REDIRECT", []string{"doctor", "capture"}, 1, []string{"IPv4 nat ISTIO_REDIRECT: missing: the chain with its rules, of which there are 1", "a rule that is not ours takes packets before ours can"}},
		{"", with("doctor", "capture", "--cleanup-only"), 2, []string{"--cleanup-only"}},
		{"", []string{"istio-iptables", "--verify", "--cleanup-only"}, 2, []string{"flag --verify"}},
		{"", []string{"doctor", "trace", "inside", "tcp://1.2.3.4:80"}, 2, []string{"FROM: "}},
	}
	for _, s := range steps {
		if s.before != "" {
			words := strings.Fields(s.before)
			if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", s.before, err, out)
			}
		}
		status, stdout, stderr := doctorIn(t, s.args...)
		if status != s.status {
			t.Errorf("%q: exit status %d, want %d:\n%s%s", s.args, status, s.status, stdout, stderr)
		}
		for _, want := range s.want {
			if !strings.Contains(stdout+stderr, want) {
				t.Errorf("%q: does not say %q:\n%s%s", s.args, want, stdout, stderr)
			}
		}
	}
}

func TestDoctorSpeaksJSON(t *testing.T) {
	capture.NewPod(t)
	if status, _, stderr := doctorIn(t, "doctor", "trace", "uid:1000", "tcp://127.0.0.1:80", "-o", "json"); status != 0 {
		t.Fatal(stderr)
	}
	_, stdout, _ := doctorIn(t, "doctor", "trace", "uid:1000", "tcp://127.0.0.1:80", "-o", "json")
	var targets []struct {
		To       string
		Decided  bool
		Outcomes []struct{ Place string }
	}
	if err := json.Unmarshal([]byte(stdout), &targets); err != nil {
		t.Fatal(err, stdout)
	}
	if len(targets) != 1 || !targets[0].Decided || len(targets[0].Outcomes) != 1 {
		t.Errorf("%s", stdout)
	}
	var out bytes.Buffer
	r := captureReport{ComparedTo: "x", Captures: []string{"y"}, Differences: []inspect.Difference{{Kind: "missing", Text: "z"}}}
	if err := r.write(&out, true); !errors.Is(err, errNotRight) {
		t.Error(err)
	}
	var back captureReport
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, back); d != "" {
		t.Error(d)
	}
}

// A list of many differences of one kind is cut short.
func TestReportIsShort(t *testing.T) {
	var r captureReport
	for range 9 {
		r.Differences = append(r.Differences, inspect.Difference{Kind: "missing", Chain: "A", Text: "missing"})
	}
	r.Differences = append(r.Differences, inspect.Difference{Kind: "surplus", Chain: "A", Text: "surplus"})
	var out bytes.Buffer
	r.print(&out)
	want := strings.Repeat("missing\n", 5) + "  and 4 more like it (--output json has them all)\nsurplus\n"
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Error(d)
	}
}
