package agent

import (
	"context"
	"net"
	"net/netip"

	"understudy.mesh/dnsproxy"
)

// resolver answers Envoy's own look-ups where the proxy is known by a mark: Envoy cannot
// mark the sockets of its resolver, and capture would send their queries to the agent's
// DNS, whose answers for mesh names lead back to Envoy. It is on a port of its own, which
// is no part of a hand-off: each Envoy asks its own agent, as long as it lives.
type resolver struct {
	addr netip.AddrPort
	udp  []*net.UDPConn
	tcp  []*net.TCPListener
}

// listenResolver binds a free port of loopback.
func listenResolver(ipv4 bool) (*resolver, error) {
	loopback := netip.IPv6Loopback()
	if ipv4 {
		loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	udp, tcp, err := dnsproxy.Listen([]netip.AddrPort{netip.AddrPortFrom(loopback, 0)})
	if err != nil {
		return nil, err
	}
	return &resolver{addr: udp[0].LocalAddr().(*net.UDPAddr).AddrPort(), udp: udp, tcp: tcp}, nil
}

// run answers until ctx ends.
func (r *resolver) run(ctx context.Context, dns *dnsproxy.Server) error {
	serving := dns.StartBeside(r.udp, r.tcp)
	defer serving.Close(ctx)
	select {
	case err := <-serving.Failed():
		return err
	case <-ctx.Done():
		return nil
	}
}

// close gives the port back, if it was never served.
func (r *resolver) close() {
	for _, c := range r.udp {
		c.Close()
	}
	for _, l := range r.tcp {
		l.Close()
	}
}
