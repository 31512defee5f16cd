package dnsproxy

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

const (
	// yieldAfter is after how many full batches in a row the connections have
	// their turn: in a flood this loop would never wait.
	yieldAfter = 8

	// maxReadErrors ends a loop whose socket only fails, so that it does
	// not spin.
	maxReadErrors = 100
)

// serveUDP reads queries from conn until Release, and answers those that it has
// the answer of in memory itself: a goroutine a query costs more than the answer.
func (v *Serving) serveUDP(conn *net.UDPConn) {
	b, err := newUDPBatch(conn)
	if err != nil {
		v.failed <- fmt.Errorf("serve dns on %s: %w", conn.LocalAddr(), err)
		return
	}
	q := new(wire.Query)
	failed, full := 0, 0
	for {
		n, err := v.serveBatch(b, q)
		switch {
		case err == nil:
			failed = 0
		case v.taking.Err() != nil:
			return
		default:
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				v.failed <- fmt.Errorf("read dns queries from %s: %w", conn.LocalAddr(), err)
				return
			}
		}
		if n < batchSize {
			full = 0
		} else if full++; full%yieldAfter == 0 {
			runtime.Gosched()
		}
	}
}

// serveBatch waits for queries, and returns how many it took once each of them
// has its reply or a goroutine that waits for it. q is room to work in.
func (v *Serving) serveBatch(b *udpBatch, q *wire.Query) (int, error) {
	n, err := b.receive()
	if err != nil {
		return 0, err
	}
	for i := range n {
		reply, f, done := v.respond(q, b.query(i), 0, b.room(i))
		if !done {
			reply = v.dispatchUDP(b, i, q, f)
		}
		if reply != nil {
			b.add(i, reply)
		}
	}
	v.server.counters.udp.Add(uint64(b.replies))
	if lost, err := b.flush(); err != nil {
		v.server.log.Debug("send dns replies", "replies", b.replies, "lost", lost, "error", err)
	}
	return n, nil
}

// dispatchUDP lets q, the i-th of b, wait in a goroutine of its own; where there
// is no room it returns the reply that says so.
func (v *Serving) dispatchUDP(b *udpBatch, i int, q *wire.Query, f found) []byte {
	select {
	case v.inflight <- struct{}{}:
	default:
		return v.overload(q, b.room(i))
	}
	own, conn, to := *q, b.conn, b.client(i)
	v.waiting.Go(func() {
		defer func() { <-v.inflight }()
		v.server.sendUDP(conn, v.wait(v.queries, &own, f), to)
	})
	return nil
}

// sendUDP sends a reply. A client that is gone is not an error of ours.
func (s *Server) sendUDP(conn *net.UDPConn, reply []byte, c client) {
	s.counters.udp.Add(1)
	_, _, err := conn.WriteMsgUDPAddrPort(reply, c.from[:c.n], c.to)
	if err != nil {
		s.log.Debug("send dns reply", "to", c.to, "bytes", len(reply), "error", err)
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
// given back.
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
