package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
)

// DefaultProbePort is the port that Istio's validation connects to.
const DefaultProbePort = 15002

// probeInterval is Istio's: whoever makes the rules may still be at it.
const probeInterval = time.Second

// Probe connects as Envoy does that calls its own pod, from 127.0.0.1 to port of 127.0.0.6
// (::1 and ::6), and returns nil when the rules of c bring that to the inbound port, in
// every IP version of c. It tries again each second until timeout. It needs to be one of
// the proxy's users, or CAP_SETUID. The error says what became of the connection.
func Probe(ctx context.Context, c iptables.Config, port uint16, timeout time.Duration, log *slog.Logger) error {
	direct := slices.Concat(c.ExcludeOutboundPorts, []uint16{c.TunnelPort, c.ProxyPort, c.InboundPort, iptables.DNSPort})
	if slices.Contains(direct, port) {
		return fmt.Errorf("validate capture: probe port %d has rules of its own: choose one that is nobody's", port)
	}
	if len(c.UIDs) == 0 {
		return errors.New("validate capture: needs a uid that the proxy is known by: --proxy-uid")
	}
	restore, err := become(c.UIDs)
	if err != nil {
		return fmt.Errorf("validate capture: %w", err)
	}
	restore()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	trials := []*trial{{network: "tcp4", from: "127.0.0.1", to: rule.Passthrough[0].Addr()}}
	if c.IPv6 {
		trials = append(trials, &trial{network: "tcp6", from: "::1", to: rule.PassthroughV6.Addr()})
	}
	for _, p := range trials {
		p.port, p.uids, p.inbound = port, c.UIDs, c.InboundPort
		if err := p.run(ctx, c.ProxyPort, log); err != nil {
			return fmt.Errorf("validate capture: %w", err)
		}
	}
	return nil
}

// trial is the connection of one IP version.
type trial struct {
	network, from string
	to            netip.Addr
	port, inbound uint16
	uids          []uint32

	occupied bool // the inbound port is somebody's, as it seems Envoy's
	arrivals chan arrival
}

// arrival is a connection that came to one of our listeners.
type arrival struct {
	port        uint16
	from        string
	destination netip.AddrPort // before it was redirected
}

func (p *trial) run(ctx context.Context, proxyPort uint16, log *slog.Logger) error {
	release, err := p.holdTarget()
	if err != nil {
		return err
	}
	defer release()
	p.arrivals = make(chan arrival)
	var accepting sync.WaitGroup
	defer accepting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, port := range []uint16{p.inbound, proxyPort} {
		l, err := p.listen(ctx, port, log)
		if err != nil {
			return err
		}
		if l != nil {
			defer l.Close()
			accepting.Go(func() { p.accept(ctx, l, port) })
		}
	}
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		ok, seen := p.once(ctx)
		if ok {
			log.Info("validation: captured as it should be", "from", p.from, "to", p.target(), "at", p.inbound)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a connection as uid %d from %s to %s %s, where it should come to port %d: "+
				"see iptables-save for the rules that are in force, and istio-iptables --dry-run for those that should be", p.uids[0], p.from, p.target(), seen, p.inbound)
		case <-tick.C:
		}
	}
}

// listen listens as Envoy would; where Envoy does already, there is no listener.
func (p *trial) listen(ctx context.Context, port uint16, log *slog.Logger) (net.Listener, error) {
	address := net.JoinHostPort(p.from, fmt.Sprint(port))
	l, err := new(net.ListenConfig).Listen(ctx, p.network, address)
	if errors.Is(err, unix.EADDRINUSE) {
		if port == p.inbound {
			p.occupied = true
			log.Info("validation: the inbound port is in use, by Envoy as it seems, so it has to do that the connection is accepted", "address", address)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listen as Envoy would: %w", err)
	}
	return l, nil
}

func (p *trial) target() string { return net.JoinHostPort(p.to.String(), fmt.Sprint(p.port)) }

// holdTarget takes the target's port, so that what is not captured is refused.
func (p *trial) holdTarget() (release func(), err error) {
	family, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(p.port), Addr: [4]byte(p.to.AsSlice())})
	if p.to.Is6() {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Port: int(p.port), Addr: p.to.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", p.target(), err)
	}
	err = unix.Bind(fd, address)
	switch {
	case err == nil:
		return func() { unix.Close(fd) }, nil
	case errors.Is(err, unix.EADDRINUSE):
		err = fmt.Errorf("%w: somebody listens there: choose another port with --iptables-probe-port", err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		err = fmt.Errorf("%w: the pod has no such address: the capture rules, which bring it, are not applied", err)
	}
	unix.Close(fd)
	return nil, fmt.Errorf("hold %s: %w", p.target(), err)
}

// once makes one connection and says what became of it.
func (p *trial) once(ctx context.Context) (ok bool, seen string) {
	conn, err := p.dial(ctx)
	if err != nil {
		return false, "failed: " + err.Error()
	}
	defer conn.Close()
	if p.occupied {
		return true, ""
	}
	select {
	case a := <-p.arrivals:
		ok = a.port == p.inbound && a.from == conn.LocalAddr().String() && a.destination == netip.AddrPortFrom(p.to, p.port)
		return ok, fmt.Sprintf("came to port %d from %s for %v", a.port, a.from, a.destination)
	case <-ctx.Done():
		return false, "was accepted by somebody else"
	}
}

// dial connects as one of the proxy's users: rules go by the user that made the socket.
func (p *trial) dial(ctx context.Context) (net.Conn, error) {
	restore, err := become(p.uids)
	if err != nil {
		return nil, err
	}
	defer restore()
	from, err := net.ResolveTCPAddr(p.network, net.JoinHostPort(p.from, "0"))
	if err != nil {
		return nil, err
	}
	d := net.Dialer{LocalAddr: from}
	return d.DialContext(ctx, p.network, p.target())
}

// become makes the calling thread one of the users for what it opens, until restore.
func become(uids []uint32) (restore func(), err error) {
	if slices.Contains(uids, uint32(unix.Geteuid())) {
		return func() {}, nil
	}
	runtime.LockOSThread() // each thread has its own: setfsuid(2)
	restore = func() {
		unix.SetfsuidRetUid(unix.Geteuid())
		runtime.UnlockOSThread()
	}
	unix.SetfsuidRetUid(int(uids[0]))
	if now, _ := unix.SetfsuidRetUid(-1); now != int(uids[0]) {
		restore()
		return nil, fmt.Errorf("become uid %d: run the validation as that user, in a container of its own, or with CAP_SETUID", uids[0])
	}
	return restore, nil
}

func (p *trial) accept(ctx context.Context, l net.Listener, port uint16) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		a := arrival{port: port, from: conn.RemoteAddr().String(), destination: originalDestination(conn.(*net.TCPConn))}
		conn.Close()
		select {
		case p.arrivals <- a:
		case <-ctx.Done():
			return
		}
	}
}

// originalDestination returns where a connection was going to; invalid: not redirected.
func originalDestination(conn *net.TCPConn) (destination netip.AddrPort) {
	const soOriginalDst = 80 // linux/netfilter_ipv4.h, and IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h
	raw, err := conn.SyscallConn()
	if err != nil {
		return destination
	}
	v4 := conn.LocalAddr().(*net.TCPAddr).IP.To4() != nil
	raw.Control(func(fd uintptr) {
		if v4 { // a sockaddr_in, which fits into the first field of an IPv6Mreq
			if m, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); err == nil {
				b := m.Multiaddr
				destination = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))
			}
		} else if m, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); err == nil {
			port := binary.NativeEndian.AppendUint16(nil, m.Addr.Port)
			destination = netip.AddrPortFrom(netip.AddrFrom16(m.Addr.Addr), binary.BigEndian.Uint16(port))
		}
	})
	return destination
}
