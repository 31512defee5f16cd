package dnsproxy

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxConns is the contract's number of TCP connections at once.
	maxConns = 256

	// connQuiet is how long a connection must have been silent to be closed for another:
	// a client that asks more often may have a question on its way at any time.
	connQuiet = time.Second
)

// connSet is the open TCP connections, of every Serving but those beside the table.
type connSet struct {
	mu    sync.Mutex
	open  map[*tcpConn]struct{}
	freed chan struct{} // closed when there is one less; made by who waits for that
}

// admit counts c in. When there are too many, the one that has been silent longest is
// closed, if that is for connQuiet; c waits until there is one, and those that come
// after it wait in the kernel. Once taking ends c is admitted at once, for it was accepted
// and nobody else can serve it.
func (s *Server) admit(taking context.Context, c *tcpConn) {
	for {
		freed := s.enter(c, taking.Err() != nil)
		if freed == nil {
			return
		}
		select {
		case <-freed:
		case <-time.After(connQuiet / 10): // nothing tells that another has been silent for long
		case <-taking.Done():
		}
	}
}

// enter counts c in, or returns what is closed when there is a connection less.
func (s *Server) enter(c *tcpConn, always bool) <-chan struct{} {
	set := c.serving.conns
	set.mu.Lock()
	defer set.mu.Unlock()
	now := s.config.Now()
	if len(set.open) >= maxConns && !always {
		quiet := set.quietest(now)
		if quiet == nil {
			if set.freed == nil {
				set.freed = make(chan struct{})
			}
			return set.freed
		}
		s.counters.tcpCut.Add(1)
		quiet.Close()
		delete(set.open, quiet)
		s.counters.tcpOpen.Add(-1)
	}
	if set.open == nil {
		set.open = map[*tcpConn]struct{}{}
	}
	c.active = now
	set.open[c] = struct{}{}
	s.counters.tcpOpen.Add(1)
	return nil
}

// quietest returns the connection that has been silent longest, nil when that is not long.
func (s *connSet) quietest(now time.Time) *tcpConn {
	for {
		var quiet *tcpConn
		for c := range s.open {
			if len(c.slots) == 0 && (quiet == nil || c.active.Before(quiet.active)) {
				quiet = c
			}
		}
		if quiet == nil || now.Sub(quiet.active) < connQuiet {
			return nil
		}
		if !unread(quiet.Conn) {
			return quiet
		}
		quiet.active = now // its query has just come
	}
}

// unread says whether something has come on a connection that nobody has read.
func unread(conn net.Conn) bool {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return false
	}
	waiting := 0
	raw.Control(func(fd uintptr) { waiting, _ = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }) // tcp(7)
	return waiting > 0
}

// touch notes that c has a query, or has got its answer.
func (s *Server) touch(c *tcpConn) {
	now, set := s.config.Now(), c.serving.conns
	set.mu.Lock()
	defer set.mu.Unlock()
	c.active = now
}

// dismiss counts c out.
func (s *Server) dismiss(c *tcpConn) {
	set := c.serving.conns
	set.mu.Lock()
	defer set.mu.Unlock()
	if _, ok := set.open[c]; !ok {
		return // it made room for another
	}
	delete(set.open, c)
	s.counters.tcpOpen.Add(-1)
	if set.freed != nil {
		close(set.freed)
		set.freed = nil
	}
}

// each calls do for the connections that v accepted.
func (s *connSet) each(v *Serving, do func(*tcpConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		if c.serving == v {
			do(c)
		}
	}
}
