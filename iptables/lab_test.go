package iptables

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// The test binary runs itself as another user, to see where that user's packets
// land: "probe NETWORK ADDRESS" prints the name of the server that answers, "probes"
// does so until its standard input ends and counts the names, "serve NETWORK ADDRESS
// NAME ..." is such servers (with the network "addresses" one that answers with the
// connection's addresses, with "transparent4" or "transparent6" a proxy that uses NAME
// as its mark), "apply BACKEND" applies fullConfig, "validate" probes it.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "probe" {
		fmt.Print(probe(os.Args[2], os.Args[3]))
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "probes" {
		probes(os.Args[2], os.Args[3])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "apply" {
		c := fullConfig()
		c.Backend = Backend(os.Args[2])
		if err := Apply(context.Background(), c, quiet()); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "validate" {
		if err := Probe(context.Background(), fullConfig(), DefaultProbePort, probeTimeout, quiet()); err != nil {
			fmt.Print(err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		serve(os.Args[2:])
		return
	}
	os.Exit(m.Run())
}

// probeTimeout is how long a probe waits for an answer that never comes.
const probeTimeout = 3 * time.Second

func probe(network, address string) string {
	conn, err := net.DialTimeout(network, address, probeTimeout)
	if err != nil {
		return "error: " + err.Error()
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(probeTimeout))
	if _, err := conn.Write([]byte("?\n")); err != nil {
		return "error: " + err.Error()
	}
	if strings.HasPrefix(network, "udp") {
		name := make([]byte, 64)
		n, err := conn.Read(name)
		if err != nil {
			return "error: " + err.Error()
		}
		return string(name[:n])
	}
	name, err := io.ReadAll(conn)
	if err != nil && len(name) == 0 {
		return "error: " + err.Error()
	}
	return string(name)
}

// probes prints how often each server answered: "3 direct, 5 15001".
func probes(network, address string) {
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	counts := map[string]int{}
	for {
		counts[probe(network, address)]++
		select {
		case <-stop:
			var out []string
			for _, name := range slices.Sorted(maps.Keys(counts)) {
				out = append(out, fmt.Sprintf("%d %s", counts[name], name))
			}
			fmt.Print(strings.Join(out, ", "))
			return
		default:
		}
	}
}

// serve answers with each server's name until its standard input ends.
func serve(args []string) {
	for ; len(args) >= 3; args = args[3:] {
		network, address, name := args[0], args[1], args[2]
		if version, ok := strings.CutPrefix(network, "transparent"); ok {
			if err := serveTransparent("tcp"+version, address, name); err != nil {
				fmt.Println(err)
				return
			}
			continue
		}
		if strings.HasPrefix(network, "udp") {
			c, err := net.ListenPacket(network, address)
			if err != nil {
				fmt.Println(err)
				return
			}
			go func() {
				buf := make([]byte, 64)
				for {
					if _, from, err := c.ReadFrom(buf); err == nil {
						c.WriteTo([]byte(name), from)
					}
				}
			}()
			continue
		}
		tellAddresses := network == "addresses"
		if tellAddresses {
			network = "tcp"
		}
		l, err := net.Listen(network, address)
		if err != nil {
			fmt.Println(err)
			return
		}
		go func() {
			for {
				if c, err := l.Accept(); err == nil {
					if tellAddresses {
						from, to := c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr)
						name = from.IP.String() + " to " + to.IP.String()
					}
					io.WriteString(c, name)
					c.Close()
				}
			}
		}()
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
}

// needRoot skips a test that programs the kernel, but not where everything must run.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root: network namespaces and iptables")
}

// namespace makes a named network namespace with lo up, enters it on this
// goroutine's thread and removes it when the test ends.
func namespace(t *testing.T, suffix string) string {
	t.Helper()
	name := "ipt-" + strings.ToLower(rand.Text()[:8]) + suffix
	ns, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	ns.Close()
	t.Cleanup(func() { netns.DeleteNamed(name) })
	up(t, "lo")
	return name
}

func up(t *testing.T, iface string) {
	t.Helper()
	link, err := netlink.LinkByName(iface)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func enter(t *testing.T, name string) {
	t.Helper()
	ns, err := netns.GetFromName(name)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

// newPod enters a namespace with lo only. The thread ends with the test's goroutine.
func newPod(t *testing.T) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	namespace(t, "")
}

// lab is a pod and the world, joined by a cable. The pod is 10.77.0.1 and fd77::1; the
// world answers "direct" at every other address.
type lab struct {
	t          *testing.T
	pod, world string
}

const (
	podV4, podV6 = "10.77.0.1", "fd77::1"
	proxyUID     = DefaultProxyID
)

func newLab(t *testing.T) *lab {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	l := &lab{t: t}
	l.world = namespace(t, "-w")
	l.pod = namespace(t, "-p")
	sh(t, `ip link add eth0 type veth peer name wire netns `+l.world+`
		ip addr add 10.77.0.1/24 dev eth0; ip addr add fd77::1/64 dev eth0 nodad
		ip link set eth0 up
		ip -n `+l.world+` addr add 10.77.0.2/24 dev wire; ip -n `+l.world+` addr add fd77::2/64 dev wire nodad
		ip -n `+l.world+` link set wire up
		ip -n `+l.world+` route add local 0.0.0.0/1 dev lo; ip -n `+l.world+` route add local 128.0.0.0/1 dev lo
		ip -n `+l.world+` route add local 2000::/3 dev lo; ip -n `+l.world+` addr add 2001:db8::53/128 dev lo nodad
		ip route add default via 10.77.0.2; ip -6 route add default via fd77::2`)

	l.serve(l.pod, proxyUID,
		"tcp", "[::]:15001", "15001", "tcp", "[::]:15006", "15006",
		"tcp4", "127.0.0.1:15053", "15053", "tcp6", "[::1]:15053", "15053",
		"udp4", "127.0.0.1:15053", "15053", "udp6", "[::1]:15053", "15053")
	l.serve(l.pod, 0, "tcp", "[::]:4000", "app", "tcp", "[::]:22", "app", "tcp", "[::]:15008", "app",
		"udp4", "127.0.0.1:53", "local", "tcp4", "127.0.0.1:53", "local")
	var world []string
	for _, port := range []string{"80", "443", "7011", "8443", "53"} {
		world = append(world, "tcp", "[::]:"+port, "direct")
	}
	// A UDP server must answer from the address that was asked.
	for _, a := range []string{"10.77.0.2", "9.9.9.9", "8.8.8.8", "[2001:db8::53]"} {
		world = append(world, "udp", a+":53", "direct")
	}
	l.serve(l.world, 0, world...)
	enter(t, l.pod)
	return l
}

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func self(uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (l *lab) serve(ns string, uid uint32, args ...string) {
	l.t.Helper()
	enter(l.t, ns)
	cmd := self(uid, append([]string{"serve"}, args...)...)
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
	l.t.Cleanup(func() { stdin.Close(); cmd.Wait() })
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		l.t.Fatalf("server in %s: %s", ns, line)
	}
}

// landing returns the name of the server that a user's packet reaches.
func (l *lab) landing(ns string, uid uint32, network, address string) string {
	l.t.Helper()
	enter(l.t, ns)
	defer enter(l.t, l.pod)
	out, err := self(uid, "probe", network, address).CombinedOutput()
	if err != nil {
		l.t.Fatalf("probe: %v: %s", err, out)
	}
	return string(out)
}

// saved returns the rules of every back end and family, comparable: without comments
// of the tool, counters, and tables that are merely there.
func saved(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, b := range []Backend{NFT, Legacy} {
		for _, f := range []Family{IPv4, IPv6} {
			text, err := tool{b, f}.save(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, tab := range parseRuleset(text) {
				if len(tab.rules)+len(tab.chains) == 0 {
					continue
				}
				fmt.Fprintf(&all, "== %s %s\n%s\n", tool{b, f}.name("save"), tab.name, strings.Join(tab.chains, " "))
				for _, r := range tab.rules {
					fmt.Fprintf(&all, "%s %s\n", r.chain, r.spec)
				}
			}
		}
	}
	all.WriteString(sh(t, "nft -s list ruleset inet; nft -s list tables ip | grep -v -e filter -e ' nat' -e raw -e mangle || true"))
	all.WriteString(sh(t, "ip -6 -o addr show dev lo | grep -c '::6/128' || true"))
	return all.String()
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// skipBackend skips a back end that this kernel or machine does not have.
func skipBackend(t *testing.T, b Backend) {
	t.Helper()
	if b == Native {
		if _, err := lookNative(quiet()); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
		return
	}
	for _, f := range []Family{IPv4, IPv6} {
		if _, err := (tool{b, f}).save(context.Background()); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}
