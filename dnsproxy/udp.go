package dnsproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const (
	// maxQuery bounds a query: a question and an OPT record with padding
	// fit many times.
	maxQuery = 4096

	// maxReadErrors ends a loop whose socket only fails, so that it does
	// not spin.
	maxReadErrors = 100
)

// serveUDP reads queries from conn until Release. It answers what it has in
// memory itself, for a goroutine a query costs more than the answer.
func (v *Serving) serveUDP(conn *net.UDPConn) {
	in := make([]byte, maxQuery)
	out := make([]byte, 0, maxQuery)
	q := &query{scope: &v.scope}
	failed := 0
	for {
		n, from, err := conn.ReadFromUDPAddrPort(in)
		if err != nil {
			if v.taking.Err() != nil {
				return
			}
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				v.failed <- fmt.Errorf("read dns queries from %s: %w", conn.LocalAddr(), err)
				return
			}
			continue
		}
		failed = 0
		reply, done := v.server.respond(q, in[:n], 0, out)
		if !done {
			reply = v.dispatchUDP(conn, from, q, out)
		}
		if reply != nil {
			v.server.sendUDP(conn, reply, from)
		}
	}
}

// dispatchUDP lets q wait in a goroutine of its own; where there is no room
// it returns the reply that says so.
func (v *Serving) dispatchUDP(conn *net.UDPConn, from netip.AddrPort, q *query, out []byte) []byte {
	select {
	case v.server.inflight <- struct{}{}:
	default:
		return v.server.overload(q, out)
	}
	own := *q
	v.waiting.Go(func() {
		defer func() { <-v.server.inflight }()
		v.server.sendUDP(conn, v.server.wait(v.queries, &own), from)
	})
	return nil
}

// sendUDP sends a reply. A client that is gone is not an error of ours.
func (s *Server) sendUDP(conn *net.UDPConn, reply []byte, to netip.AddrPort) {
	s.counters.udp.Add(1)
	_, err := conn.WriteToUDPAddrPort(reply, to)
	if err != nil {
		s.log.Debug("send dns reply", "to", to, "bytes", len(reply), "error", err)
	}
}

// Listen binds a UDP and a TCP socket to each address. Port 0 gives both the
// same free port. On an error nothing stays open.
func Listen(addrs []netip.AddrPort) (udp []*net.UDPConn, tcp []*net.TCPListener, err error) {
	defer func() {
		if err != nil {
			for _, c := range udp {
				c.Close()
			}
			for _, l := range tcp {
				l.Close()
			}
			udp, tcp = nil, nil
		}
	}()
	for _, addr := range addrs {
		u, t, err := listenBoth(addr)
		if err != nil {
			return udp, tcp, err
		}
		udp, tcp = append(udp, u), append(tcp, t)
	}
	return udp, tcp, nil
}

// portTries is how often a port that is free for TCP and taken for UDP is
// given back; only tests ask for port 0.
const portTries = 10

func listenBoth(addr netip.AddrPort) (*net.UDPConn, *net.TCPListener, error) {
	var last error
	for range portTries {
		t, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		if err != nil {
			return nil, nil, fmt.Errorf("listen for dns on %s/tcp: %w", addr, err)
		}
		bound := netip.AddrPortFrom(addr.Addr(), t.Addr().(*net.TCPAddr).AddrPort().Port())
		u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(bound))
		if err == nil {
			return u, t, nil
		}
		t.Close()
		last = fmt.Errorf("listen for dns on %s/udp: %w", bound, err)
		if addr.Port() != 0 {
			break
		}
	}
	return nil, nil, last
}

// deadlineIn returns the time d from now. Deadlines of sockets are the
// kernel's time, never the injected clock's.
func deadlineIn(d time.Duration) time.Time { return time.Now().Add(d) }
