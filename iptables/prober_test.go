package iptables_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// probe is a first packet whose landing is asked for.
type probe struct {
	owner
	network string // "tcp" or "udp"
	to      netip.AddrPort
	source  netip.Addr // the sender's address, which nobody needs to have; none: as routed
	mark    uint32     // of the socket
}

func (p probe) String() string {
	s := fmt.Sprintf("uid %d gid %d %s %v", p.uid, p.gid, p.network, p.to)
	if p.source.IsValid() {
		s += fmt.Sprintf(" from %v", p.source)
	}
	if p.mark != 0 {
		s += fmt.Sprintf(" mark %d", p.mark)
	}
	return s
}

const (
	// probeTimeout is how long a probe waits for an answer that never comes. The labs
	// refuse what they do not serve, so few wait.
	probeTimeout = 3 * time.Second
	// A datagram is not sent again by the kernel.
	datagrams = 3
)

// land returns the name of the server that p reaches, or the error of its socket.
// A server that was asked for another address than p's (which only a packet that the
// capture has mangled can do) has that behind its name. The calling thread's user
// becomes p's: netfilter looks at the file system uid and gid with which a socket was
// made, and those belong to the thread. So a probe costs no process.
func (p probe) land() string {
	if _, err := unix.SetfsgidRetGid(int(p.gid)); err != nil {
		return err.Error()
	}
	if _, err := unix.SetfsuidRetUid(int(p.uid)); err != nil {
		return err.Error()
	}
	c, err := p.dialer().DialContext(context.Background(), p.network, p.to.String())
	if err != nil {
		return failure(err)
	}
	defer c.Close()
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0) // its port is free again at once
		tcp.SetReadDeadline(time.Now().Add(probeTimeout))
		return p.answer(c)
	}
	landed := ""
	for range datagrams {
		if _, err := c.Write([]byte("?")); err != nil {
			return failure(err)
		}
		c.SetReadDeadline(time.Now().Add(probeTimeout / datagrams))
		if landed = p.answer(c); landed != timedOut {
			break
		}
	}
	return landed
}

func (p probe) dialer() *net.Dialer {
	d := &net.Dialer{Timeout: probeTimeout}
	var options []sockOption
	if p.mark != 0 {
		options = append(options, sockOption{unix.SOL_SOCKET, unix.SO_MARK, int(p.mark)})
	}
	if p.source.IsValid() {
		options = append(options, transparentOption(p.source.Is6()))
		d.LocalAddr = &net.TCPAddr{IP: p.source.AsSlice()}
		if p.network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: p.source.AsSlice()}
		}
	}
	if len(options) > 0 {
		d.Control = control(options...)
	}
	return d
}

func (p probe) answer(c net.Conn) string {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return failure(err)
	}
	name, asked, _ := strings.Cut(strings.TrimSpace(line), " ")
	if asked == "" || asked == p.to.String() {
		return name
	}
	return name + " for " + asked
}

const timedOut = "no answer"

// failure names errors of sockets, without what differs from one to the next.
func failure(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return timedOut
	}
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		return timedOut
	}
	return err.Error()
}

// prober sends probes from one network namespace.
type prober struct {
	asked   chan request
	threads sync.WaitGroup
}

type request struct {
	probe
	landed chan<- string
}

// probeThreads is how many probes wait for their answers at once.
const probeThreads = 8

func newProber(t *testing.T, ns string) *prober {
	t.Helper()
	p := &prober{asked: make(chan request)}
	entered := make(chan error, probeThreads)
	for range probeThreads {
		p.threads.Go(func() {
			runtime.LockOSThread() // for good: the thread has another user and namespace
			err := enterNamespace(ns)
			entered <- err
			if err != nil {
				return
			}
			for q := range p.asked {
				q.landed <- q.land()
			}
		})
	}
	t.Cleanup(func() { close(p.asked); p.threads.Wait() })
	for range probeThreads {
		if err := <-entered; err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// land returns where the probes land, in their order.
func (p *prober) land(probes []probe) []string {
	answers := make([]chan string, len(probes))
	for i := range probes {
		answers[i] = make(chan string, 1)
	}
	go func() {
		for i, q := range probes {
			p.asked <- request{q, answers[i]}
		}
	}()
	out := make([]string, len(probes))
	for i := range out {
		out[i] = <-answers[i]
	}
	return out
}

// prober returns the prober of one of the lab's namespaces.
func (l *lab) prober(ns string) *prober {
	l.t.Helper()
	p := l.probers[ns]
	if p == nil {
		p = newProber(l.t, ns)
		l.probers[ns] = p
	}
	return p
}

// landing returns the name of the server that a user's packet reaches.
func (l *lab) landing(ns string, uid uint32, network, address string) string {
	l.t.Helper()
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		l.t.Fatal(err)
	}
	return l.prober(ns).land([]probe{{owner: owner{uid, uid}, network: network, to: to}})[0]
}
