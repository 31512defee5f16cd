package dnsproxy

import (
	"context"
	"net"
	"sync"
	"time"
)

// Serving is a time for which a Server takes queries: from Start to Release,
// and until Close to answer those that were taken. Its methods may be called at
// the same time and repeatedly.
type Serving struct {
	chain
	udp    []*net.UDPConn
	tcp    []*net.TCPListener
	failed chan error

	// The limits: StartBeside has its own, so that neither the application's questions nor
	// Envoy's can keep the other's from being answered.
	inflight  chan struct{} // one slot for each query that waits
	conns     *connSet
	pipelined int // how many queries of a connection may wait at once

	taking  context.Context // until Release
	letGo   context.CancelFunc
	queries context.Context // of every query; cut ends them
	cut     context.CancelFunc

	release sync.Once
	loops   sync.WaitGroup // that read datagrams and accept connections
	waiting sync.WaitGroup // queries over UDP that wait
	done    chan struct{}  // closed when nothing is left
}

// Start begins to take queries from the sockets, which belong to the Serving
// from here on. The caller's other descriptors of the same kernel sockets stay
// the caller's, and somebody else may read them at the same time, this server
// included: it may be started again before an earlier Serving has ended. Who
// starts it must call Close.
func (s *Server) Start(udp []*net.UDPConn, tcp []*net.TCPListener) *Serving {
	v := s.newServing(s.tables, udp, tcp)
	v.inflight, v.conns, v.pipelined = s.inflight, &s.conns, maxPipelined
	return v.start()
}

// StartBeside is Start for a client that must not be told what is in the table, and
// need not wait for one: Envoy, to which the addresses in the table lead back. It asks
// for names as they are in its configuration, and resolv.conf's search list is walked
// here (see searching).
func (s *Server) StartBeside(udp []*net.UDPConn, tcp []*net.TCPListener) *Serving {
	v := s.newServing(s.searching, udp, tcp)
	// One connection brings all that Envoy asks at its start.
	v.inflight, v.conns, v.pipelined = make(chan struct{}, maxInflight), &connSet{}, maxInflight
	return v.start()
}

func (s *Server) newServing(first stage, udp []*net.UDPConn, tcp []*net.TCPListener) *Serving {
	v := &Serving{chain: chain{server: s, first: first}, udp: udp, tcp: tcp, failed: make(chan error, len(udp)+len(tcp)), done: make(chan struct{})}
	v.taking, v.letGo = context.WithCancel(context.Background())
	v.queries, v.cut = context.WithCancel(context.Background())
	v.flights.Transport.Open(v.queries, true)
	return v
}

func (v *Serving) start() *Serving {
	for _, conn := range v.udp {
		v.loops.Go(func() { v.serveUDP(conn) })
	}
	for _, l := range v.tcp {
		v.loops.Go(func() { v.serveTCP(l) })
	}
	return v
}

// Failed delivers the error of each socket that broke before Release; the
// others go on. It is never closed.
func (v *Serving) Failed() <-chan error { return v.failed }

// Release lets go of the sockets: once it returns, no datagram is read and no
// connection accepted any more; what arrives waits in the kernel for whoever
// has another descriptor. Only deadlines, which are this process' own, and
// close(2) are used. A query that was read is still answered through its
// socket. Connections are served on until they are silent for releasedIdle.
func (v *Serving) Release() {
	v.release.Do(func() {
		v.letGo()
		for _, conn := range v.udp {
			conn.SetReadDeadline(time.Unix(1, 0)) // long past: the loop wakes at once
		}
		for _, l := range v.tcp {
			l.Close()
		}
		v.loops.Wait()
		v.conns.each(v, func(c *tcpConn) { c.SetReadDeadline(deadlineIn(releasedIdle)) })
		go v.finish()
	})
}

// finish closes the UDP sockets behind the last reply.
func (v *Serving) finish() {
	v.waiting.Wait()
	for _, conn := range v.udp {
		conn.Close()
	}
	v.flights.Transport.End()
	close(v.done)
}

// Close releases the sockets, and waits until every query that was taken has
// its answer and every connection has ended. What is not done when ctx ends is
// cut: queries over UDP get SERVFAIL, connections are closed. It returns when
// no goroutine is left.
func (v *Serving) Close(ctx context.Context) {
	v.Release()
	select {
	case <-v.done:
		v.cut()
		return
	case <-ctx.Done():
	}
	v.cut()
	v.conns.each(v, func(c *tcpConn) { c.Close() })
	<-v.done
}
