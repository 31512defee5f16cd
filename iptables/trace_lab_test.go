package iptables_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/tests/capture"
)

// transparentPort is where this lab's Envoy of TPROXY mode is.
const transparentPort = tproxyPort

// tracerLab is a lab in which every TCP port of the world answers, a transparent
// socket takes what TPROXY hands over, and probes are made on this process's own
// threads, for there are thousands.
type tracerLab struct {
	*lab
	random *rand.Rand
}

func newTracerLab(t *testing.T) *tracerLab {
	t.Helper()
	l := &tracerLab{newLab(t), rand.New(rand.NewPCG(1, 2))}
	enter(t, l.world)
	for _, binary := range []string{"iptables-nft", "ip6tables-nft"} {
		capture.Sh(t, binary+" -t nat -A PREROUTING -i wire -p tcp -j REDIRECT --to-ports 80")
	}
	enter(t, l.pod)
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1))
		})
		return err
	}}
	server, err := listen.Listen(t.Context(), "tcp", fmt.Sprintf("[::]:%d", transparentPort))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "transparent")
			c.Close()
		}
	}()
	return l
}

// flow makes a random packet that has a server wherever it may land.
func (l *tracerLab) flow() inspect.Flow {
	pick := func(list ...string) string { return list[l.random.IntN(len(list))] }
	ids := []uint32{0, 0, 1000, 1000, 1337, 1337, 3, 4}
	groups := []uint32{1, 2, 21, 202, 888, 2001, 1337}
	port := pick("80", "443", "53", "7001", "7015", "7040", "8001", "8443", "15008", "32000", "31000", "5000", "6000", "4000", "22", "15090", "15001")
	if l.random.IntN(4) == 0 {
		f := inspect.Flow{Proto: rule.TCP, Dst: netip.MustParseAddrPort(pick(capture.PodV4, "["+capture.PodV6+"]") + ":" + port)}
		if l.random.IntN(2) == 0 {
			client := "10.77.0.2:0"
			if f.Dst.Addr().Is6() {
				client = "[fd77::2]:0"
			}
			f.Src = netip.MustParseAddrPort(client)
		}
		return f
	}
	f := inspect.Flow{Local: true, Proto: rule.TCP, UID: ids[l.random.IntN(len(ids))]}
	f.GID = f.UID
	if l.random.IntN(2) == 0 {
		f.GID = groups[l.random.IntN(len(groups))]
	}
	if l.random.IntN(4) == 0 {
		f.Proto = rule.UDP
		f.Dst = netip.MustParseAddrPort(pick("9.9.9.9", "8.8.8.8", "10.77.0.2", "127.0.0.1", "127.0.0.53", "[2001:db8::53]") + ":53")
		return f
	}
	f.Dst = netip.MustParseAddrPort(pick("1.2.3.4", "1.1.0.1", "9.9.9.9", "9.9.1.1", "10.9.9.9", "192.168.0.1", "192.168.3.3", "240.240.1.1", "127.0.0.1", "127.1.2.3", capture.PodV4,
		"[2001:db8::1]", "[2001:2::1]", "[::1]", "["+capture.PodV6+"]") + ":" + port)
	if f.Dst.Addr() == netip.MustParseAddr(capture.PodV4) && l.random.IntN(3) == 0 {
		f.Src = netip.MustParseAddrPort("127.0.0.6:0")
	}
	return f
}

// answer is what a probe gets where a packet lands.
func (l *tracerLab) answer(at inspect.Landing) string {
	switch at.Place {
	case "direct":
		return "direct"
	case "dropped":
		return "refused" // as rules that REJECT have it
	case "unreachable", "undecided":
		return string(at.Place)
	}
	switch port := at.Addr.Port(); {
	case at.Addr.Addr() == netip.MustParseAddr("10.77.0.2"), at.Addr.Addr() == netip.MustParseAddr("fd77::2"):
		return "direct"
	case port == transparentPort:
		return "transparent"
	case port == 15001 || port == 15006:
		return fmt.Sprint(port)
	case port == 15053 && at.Addr.Addr().IsLoopback():
		return "15053"
	case slices.Contains(appPorts, fmt.Sprint(port)):
		return "app"
	}
	return "refused"
}

// probe sends the packet of a flow and returns the name of what answers.
func (l *tracerLab) probe(f inspect.Flow) string {
	result := make(chan string)
	go func() {
		runtime.LockOSThread() // and never back: the thread has another identity now
		ns := l.pod
		if !f.Local {
			ns = l.world
		}
		handle, err := netns.GetFromName(ns)
		if err == nil {
			err = netns.Set(handle)
			handle.Close()
		}
		if err == nil {
			err = errors.Join(unix.Setfsgid(int(f.GID)), unix.Setfsuid(int(f.UID)))
		}
		if err != nil {
			result <- err.Error()
			return
		}
		got, err := exchange(f)
		switch {
		case errors.Is(err, unix.ECONNREFUSED):
			got = "refused"
		case err != nil:
			got = err.Error()
		default:
			got, _, _ = strings.Cut(strings.TrimSpace(got), " ")
		}
		result <- got
	}()
	return <-result
}

// exchange asks with a socket made on the calling thread, whose user it thus has.
func exchange(f inspect.Flow) (string, error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if f.Dst.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if f.Proto == rule.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if f.Local && f.Src.Addr().IsValid() {
		if err := unix.Bind(fd, socketAddress(f.Src)); err != nil {
			return "", err
		}
	}
	if err := unix.Connect(fd, socketAddress(f.Dst)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return "", err
	}
	if f.Proto == rule.UDP {
		if _, err := unix.Write(fd, []byte("?")); err != nil {
			return "", err
		}
	}
	return readWithin(fd, probeTimeout)
}

func readWithin(fd int, limit time.Duration) (string, error) {
	deadline := time.Now().Add(limit)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = os.ErrDeadlineExceeded
		}
		if err != nil {
			return "", err
		}
		buf := make([]byte, 64)
		n, err = unix.Read(fd, buf)
		return string(buf[:max(n, 0)]), err
	}
}

func socketAddress(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// compare follows n random packets on paper and in the kernel.
func (l *tracerLab) compare(name string, n int) (counts map[string]int) {
	l.t.Helper()
	// What an earlier configuration decided about a connection must not count.
	if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		l.t.Fatal(err)
	}
	s, err := inspect.Read(l.t.Context(), capture.Quiet())
	if err != nil {
		l.t.Fatal(err)
	}
	counts = map[string]int{}
	for range n {
		f := l.flow()
		traced, err := s.Trace(f, false)
		if err != nil {
			l.t.Fatal(err)
		}
		var want []string
		for _, o := range traced.Outcomes {
			want = append(want, l.answer(o.Landing))
			counts[string(o.Place)]++
		}
		if len(want) != 1 {
			l.t.Errorf("%s: %+v: the tracer is undecided: %v", name, f, traced.Outcomes)
			continue
		}
		if got := l.probe(f); got != want[0] {
			var steps strings.Builder
			for _, step := range traced.Outcomes[0].Steps {
				if step.Matched {
					fmt.Fprintln(&steps, step.Hook, step)
				}
			}
			l.t.Errorf("%s: %+v lands at %q; the tracer says %q (%v):\n%s", name, f, got, want[0], traced.Outcomes[0].Landing, &steps)
		}
	}
	return counts
}

// What the tracer says must be what the kernel does.
func TestTraceIsWhatHappens(t *testing.T) {
	l := newTracerLab(t)
	all := map[string]int{}
	for _, b := range backends {
		if b != rule.Native {
			if _, err := save(b, rule.IPv6); err != nil && os.Getenv("CI") != "true" {
				t.Logf("not on %s: %v", b, err)
				continue
			}
		}
		for _, g := range capture.Golden {
			c := iptables.Default()
			g.Edit(&c)
			l.applyAndCompare(string(b)+" "+g.Name, b, c, 24, all)
			l.isRight(g.Name)
		}
		viaTPROXY := capture.Full()
		viaTPROXY.TPROXY = true
		l.applyAndCompare(string(b)+" TPROXY", b, viaTPROXY, 100, all)
		if b == rule.Native {
			clean(t)
			continue
		}
		capture.Sh(t, capture.OthersRules(b))
		l.applyAndCompare(string(b)+" full, among others", b, capture.Full(), 200, all)
		l.applyAndCompare(string(b)+" listed, among others", b, capture.Listed(), 200, all)
		clean(t)
		capture.Sh(t, fmt.Sprintf("for i in iptables ip6tables; do for t in raw mangle nat filter; do $i-%[1]s -t $t -F; $i-%[1]s -t $t -X; done; done", b))
	}
	t.Log(all)
	for _, place := range []string{"envoy-outbound", "envoy-inbound", "dns", "local", "direct", "dropped", "redirected"} {
		if all[place] < 20 {
			t.Errorf("%d packets landed at %s: the comparison says little of it", all[place], place)
		}
	}
}

func (l *tracerLab) applyAndCompare(name string, b rule.Backend, c iptables.Config, packets int, all map[string]int) {
	l.t.Helper()
	if l.t.Failed() {
		return
	}
	c.Backend = b
	if c.TPROXY {
		c.InboundPort = transparentPort
	}
	if !slices.Contains(c.UIDs, capture.ProxyUID) { // the lab's DNS server is, and must be known to answer
		c.UIDs = append(slices.Clone(c.UIDs), capture.ProxyUID)
	}
	apply(l.t, c)
	for place, n := range l.compare(name, packets) {
		all[place] += n
	}
}

// isRight checks that the kernel's own print of what is in force is complete.
func (l *tracerLab) isRight(name string) {
	l.t.Helper()
	if l.t.Failed() {
		return
	}
	s, err := inspect.Read(l.t.Context(), capture.Quiet())
	if err != nil {
		l.t.Fatal(err)
	}
	c, ok := s.Infer()
	if !ok {
		l.t.Errorf("%s: nothing inferred", name)
	}
	list, err := s.Verify(c)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, d := range list {
		l.t.Errorf("%s: %s", name, d.Text)
	}
}
