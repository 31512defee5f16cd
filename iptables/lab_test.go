package iptables_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/internal/saved"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// The test binary runs itself as another user or to be killed: "serve NETWORK ADDRESS
// NAME ..." is servers that say where a packet landed, "apply BACKEND" applies
// fullConfig, "apply BACKEND N" the configuration changing(N), "validate" probes it,
// "squat MANNER" takes the lock's name.
func TestMain(m *testing.M) {
	if want := os.Getenv(namespaceVariable); want != "" && want != thisNamespace() {
		fmt.Printf("started in namespace %s, not in %s: Start must run on the thread that entered it", thisNamespace(), want)
		os.Exit(1)
	}
	if len(os.Args) > 1 && os.Args[1] == "apply" {
		c := capture.Full()
		if len(os.Args) > 3 {
			i, _ := strconv.Atoi(os.Args[3])
			c = changing(i)
		}
		c.Backend = rule.Backend(os.Args[2])
		if err := iptables.Apply(context.Background(), c, capture.Quiet()); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "validate" {
		if err := inspect.Probe(context.Background(), capture.Full(), inspect.DefaultProbePort, probeTimeout, capture.Quiet()); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "squat" {
		fmt.Println(squat(os.Args[2]))
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

func enter(t *testing.T, name string) {
	t.Helper()
	if err := enterNamespace(name); err != nil {
		t.Fatal(err)
	}
}

// enterNamespace moves the calling thread.
func enterNamespace(name string) error {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Set(ns)
}

// lab is a pod and the world, joined by a cable. The pod is 10.77.0.1 and fd77::1; the
// world answers "direct" at every other address.
type lab struct {
	t          *testing.T
	pod, world string
	probers    map[string]*prober // by namespace
	proxy      owner              // of the servers that stand for Envoy and the agent
	stopProxy  func()
}

// owner is who sends packets.
type owner struct{ uid, gid uint32 }

// appPorts are where the application listens, and the world everywhere else.
var appPorts = []string{"22", "53", "80", "443", "4000", "5000", "6000", "7000", "7011", "8443", "15008", "31000", "32000"}

func newLab(t *testing.T) *lab {
	t.Helper()
	capture.NeedRoot(t)
	runtime.LockOSThread()
	l := &lab{t: t, probers: map[string]*prober{}}
	l.world = capture.Namespace(t, "-w")
	l.pod = capture.Namespace(t, "-p")
	l.cable("eth0", l.world, "wire", 77)
	capture.Sh(t, `ip -n `+l.world+` route add local 0.0.0.0/1 dev lo; ip -n `+l.world+` route add local 128.0.0.0/1 dev lo
		ip -n `+l.world+` route add local 2000::/3 dev lo
		ip route add default via 10.77.0.2; ip -6 route add default via fd77::2`)

	l.serve(l.pod, 0, everywhere("app")...)
	l.serve(l.world, 0, everywhere("direct")...)
	t.Cleanup(func() { l.stopProxy() })
	l.proxyIs(owner{capture.ProxyUID, capture.ProxyUID})
	enter(t, l.pod)
	return l
}

// cable joins the pod, which is entered, and another namespace: it is 10.n.0.1 and
// fdn::1, the other end 10.n.0.2 and fdn::2. Neighbours are known from the start,
// for the first packet to one of IPv6 can take a second.
func (l *lab) cable(iface, ns, peer string, n int) {
	l.t.Helper()
	capture.Sh(l.t, strings.NewReplacer("IFACE", iface, "NS", ns, "PEER", peer, "NN", strconv.Itoa(n)).Replace(
		`ip link add IFACE address 02:00:00:00:NN:01 type veth peer name PEER address 02:00:00:00:NN:02 netns NS
		ip addr add 10.NN.0.1/24 dev IFACE; ip addr add fdNN::1/64 dev IFACE nodad
		ip -n NS addr add 10.NN.0.2/24 dev PEER; ip -n NS addr add fdNN::2/64 dev PEER nodad
		ip link set IFACE up; ip -n NS link set PEER up
		ip neigh add 10.NN.0.2 lladdr 02:00:00:00:NN:02 dev IFACE; ip neigh add fdNN::2 lladdr 02:00:00:00:NN:02 dev IFACE
		ip -n NS neigh add 10.NN.0.1 lladdr 02:00:00:00:NN:01 dev PEER; ip -n NS neigh add fdNN::1 lladdr 02:00:00:00:NN:01 dev PEER`))
}

// namespaceVariable tells a copy of the test binary where it must be: one that is
// started by another thread than the test's would work on the machine's own network.
const namespaceVariable = "IPTABLES_TEST_NAMESPACE"

// thisNamespace returns the identity of the calling thread's network namespace.
func thisNamespace() string {
	ns, err := netns.Get()
	if err != nil {
		return err.Error()
	}
	defer ns.Close()
	return ns.UniqueId()
}

// self returns the test binary as another user, to be started in the namespace of the
// calling thread.
func self(uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	// The race detector would sleep for a second before each exit.
	cmd.Env = append(os.Environ(), namespaceVariable+"="+thisNamespace(), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// serve starts servers in a namespace (see serve) for the time of the test.
func (l *lab) serve(ns string, uid uint32, args ...string) {
	l.t.Helper()
	l.t.Cleanup(l.serveAs(ns, owner{uid, uid}, args...))
}

// serveAs starts servers in a namespace. Whose they are counts for the packets that
// they answer with.
func (l *lab) serveAs(ns string, who owner, args ...string) (stop func()) {
	l.t.Helper()
	enter(l.t, ns)
	cmd := self(who.uid, append([]string{"serve"}, args...)...)
	cmd.SysProcAttr.Credential.Gid = who.gid
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE} // transparent sockets, port 53
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { stdin.Close(); cmd.Wait() })
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		stop()
		l.t.Fatalf("server in %s: %s", ns, line)
	}
	return stop
}

// proxyIs makes Envoy's and the agent's servers somebody's.
func (l *lab) proxyIs(who owner) {
	l.t.Helper()
	if l.proxy == who {
		return
	}
	if l.stopProxy != nil {
		l.stopProxy()
	}
	var servers []string
	for _, port := range []string{"15001", "15006", "16001", "16006"} {
		servers = append(servers, "transparent4", "0.0.0.0:"+port, port, "transparent6", "[::]:"+port, port)
	}
	for _, n := range []string{"tcp", "udp"} {
		servers = append(servers, n+"4", "127.0.0.1:15053", "15053", n+"6", "[::1]:15053", "15053")
	}
	l.proxy, l.stopProxy = who, l.serveAs(l.pod, who, servers...)
}

// everywhere returns servers at all of appPorts.
func everywhere(name string) (servers []string) {
	for _, port := range appPorts {
		for _, n := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
			servers = append(servers, n, ":"+port, name)
		}
	}
	return servers
}

// rulesNow returns the rules of every back end and family, comparable: without comments
// of the tool, counters, and tables that are merely there.
func rulesNow(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, b := range []rule.Backend{rule.NFT, rule.Legacy} {
		for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
			text, err := save(b, f)
			if err != nil {
				t.Fatal(err)
			}
			for _, tab := range saved.Parse(text) {
				if len(tab.Rules)+len(tab.Chains) == 0 {
					continue
				}
				fmt.Fprintf(&all, "== %s %s\n%s\n", program(b, f, "save"), tab.Name, strings.Join(tab.Chains, " "))
				for _, r := range tab.Rules {
					fmt.Fprintf(&all, "%s %s\n", r.Chain, r.Spec)
				}
			}
		}
	}
	all.WriteString(capture.Sh(t, "nft -s list ruleset inet; nft -s list tables ip | grep -v -e filter -e ' nat' -e raw -e mangle || true"))
	all.WriteString(capture.Sh(t, "ip -6 -o addr show dev lo | grep -c '::6/128' || true"))
	return all.String()
}

// SkipBackend skips a back end that this kernel or machine does not have.
func skipBackend(t *testing.T, b rule.Backend) {
	t.Helper()
	if b == rule.Native {
		if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%v: %s", err, out)
			}
			t.Skipf("%v: %s", err, out)
		}
		return
	}
	for _, f := range []rule.Family{rule.IPv4, rule.IPv6} {
		if _, err := save(b, f); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// program is the name of one of iptables' programs.
func program(b rule.Backend, f rule.Family, verb string) string {
	name := map[rule.Family]string{rule.IPv4: "iptables", rule.IPv6: "ip6tables"}[f]
	return name + "-" + string(b) + "-" + verb
}

// save returns what iptables-save prints.
func save(b rule.Backend, f rule.Family) (string, error) {
	out, err := exec.Command(program(b, f, "save")).Output()
	if err != nil {
		err = fmt.Errorf("%s: %w", program(b, f, "save"), err)
	}
	return string(out), err
}

// restore gives iptables-restore its input.
func restore(t *testing.T, b rule.Backend, f rule.Family, input string, args ...string) {
	t.Helper()
	cmd := exec.Command(program(b, f, "restore"), args...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s:\n%s", cmd, err, out, strings.TrimSpace(input))
	}
}
