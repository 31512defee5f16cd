package sidecar

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"understudy.mesh/dnsproxy"
)

// resolver answers Envoy's own look-ups: past the name table, whose answers for mesh names
// lead back to Envoy, and with resolv.conf's search list walked once for all clusters that
// have the same name. Envoy itself would ask for each name below each search domain, and
// once for each cluster; it would not read a changed resolv.conf; and where the proxy is
// known by a mark, it could not mark the sockets. The port is one of its own, which is no
// part of a hand-off: each Envoy asks its own agent, as long as it lives.
//
// Whoever else is in the pod may ask there, too, and is told what the servers of
// resolv.conf say, as it would be without capture.
type resolver struct {
	dns  *dnsproxy.Server
	addr netip.AddrPort
	tcp  *net.TCPListener
}

// loopback is the address that a pod has for itself.
func loopback(ipv4 bool) netip.Addr {
	if ipv4 {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// listenResolver binds a free port of loopback.
func listenResolver(ipv4 bool, dns *dnsproxy.Server) (*resolver, error) {
	tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(loopback(ipv4), 0)))
	if err != nil {
		return nil, fmt.Errorf("listen for Envoy's look-ups of names: %w", err)
	}
	return &resolver{dns: dns, addr: tcp.Addr().(*net.TCPAddr).AddrPort(), tcp: tcp}, nil
}

// run answers until ctx ends.
func (r *resolver) run(ctx context.Context) error {
	serving := r.dns.StartBeside(nil, []*net.TCPListener{r.tcp})
	defer serving.Close(ctx)
	select {
	case err := <-serving.Failed():
		return err
	case <-ctx.Done():
		return nil
	}
}

// close gives the port back, if it was never served.
func (r *resolver) close() { r.tcp.Close() }
