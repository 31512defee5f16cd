package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"
)

// appLinger is how long the kernel may try to deliver what is left when a
// probe's connection is closed. With it the connection leaves no TIME_WAIT
// state for minutes behind, as kubelet's own probes do not.
const appLinger = 1 // seconds

// appDialTimeout bounds one connection attempt within the pod, where the
// answer is immediate unless the application's backlog is full.
const appDialTimeout = 10 * time.Second

// destination is where the application is probed.
type destination struct {
	addr   netip.Addr // the pod's, or a loopback address
	source netip.Addr // what marks our connections as forwarded ones
}

// newDestination chooses the first of the pod's addresses, or the loopback
// address of its family; 127.0.0.1 when the pod has none.
func newDestination(podIPs []netip.Addr, localhost bool) destination {
	d := destination{addr: netip.AddrFrom4([4]byte{127, 0, 0, 1}), source: forwardedSource4}
	if len(podIPs) == 0 {
		return d
	}
	first := podIPs[0].Unmap()
	if first.Is6() {
		d = destination{addr: netip.IPv6Loopback(), source: forwardedSource6}
	}
	if !localhost {
		d.addr = first
	}
	return d
}

// hostPort is the address of one of the application's ports.
func (d destination) hostPort(port uint16) string { return netip.AddrPortFrom(d.addr, port).String() }

// dial connects to addr from the source address that capture knows as
// forwarded inbound traffic, so that a probe is not captured again and an
// application can tell it from its own. ::6 exists only once the capture rules
// are in place; without it there is no capture to avoid, and any source does, as
// for a host beyond the machine (EINVAL), where no loopback address leads.
func (d destination) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: appDialTimeout, LocalAddr: &net.TCPAddr{IP: d.source.AsSlice()}}
	conn, err := dialer.DialContext(ctx, network, addr)
	if errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EINVAL) {
		dialer.LocalAddr = nil
		conn, err = dialer.DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		if err := tcp.SetLinger(appLinger); err != nil {
			return nil, errors.Join(fmt.Errorf("set SO_LINGER: %w", err), conn.Close())
		}
	}
	return conn, nil
}

// dialLoopback connects to a port of 127.0.0.1 or, when nothing listens there,
// of ::1, whatever host addr names: /etc/hosts may be missing.
func dialLoopback(ctx context.Context, network, addr string) (net.Conn, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", addr, err)
	}
	dialer := net.Dialer{Timeout: appDialTimeout}
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(host, port))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// parsePort reads a port number from 1 to 65535.
func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("port %q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}
