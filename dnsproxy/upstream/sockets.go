package upstream

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// busySockets is how many questions must be on their way over UDP at once for
	// sockets to be used again: an answer could then be to any of many. It is so
	// for busyTime more, for questions come and are answered in batches.
	busySockets = 16
	busyTime    = 100 * time.Millisecond

	// maxSocketUses and maxSocketAge bound how long a port is the same.
	maxSocketUses = 32
	maxSocketAge  = time.Second
)

// sockets are the UDP sockets to upstreams. Each carries one question at a time,
// and as a rule only one ever, for its port, which the kernel picks at random, is
// half of what a forger must guess (RFC 5452 section 9.2). To open and close them
// is a third of what a forwarded query costs, though; so under load a question
// takes any of those that have had their answer. A blind forger gains nothing by
// that: as many ports as before wait for an answer, each for one id, and a socket
// to which something came before its question is not used.
type sockets struct {
	mu        sync.Mutex
	asked     map[*datagram]struct{} // carry a question
	ended     bool                   // nobody waits for answers any more
	busyUntil time.Time
	idle      map[target][]*datagram
	sweeper   *time.Timer // runs while there is an idle one
}

// ask sends request to server; done ends that.
func (s *sockets) ask(server target, request []byte, now time.Time) (*datagram, error) {
	d := s.take(server, now)
	if d != nil && !d.fresh(now) {
		d.Close()
		d = nil
	}
	if d == nil {
		var err error
		if d, err = server.connect(now); err != nil {
			return nil, fmt.Errorf("ask %s: %w", server, err)
		}
	}
	d.uses++
	d.request = request
	s.hold(d, now)
	if _, err := d.Write(request); err != nil {
		s.done(d, false)
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	return d, nil
}

// done takes d back, whose question has been answered, or never will be.
func (s *sockets) done(d *datagram, answered bool) {
	if !s.release(d, answered && d.uses < maxSocketUses) {
		d.Close()
	}
}

// take returns a socket if one may be used again.
func (s *sockets) take(server target, now time.Time) *datagram {
	s.mu.Lock()
	defer s.mu.Unlock()
	idle := s.idle[server]
	if len(idle) == 0 || len(s.asked)+len(idle) < busySockets || now.After(s.busyUntil) {
		return nil
	}
	i, last := rand.IntN(len(idle)), len(idle)-1
	d := idle[i]
	idle[i], idle[last] = idle[last], nil
	s.idle[server] = idle[:last]
	return d
}

// hold notes that d carries a question.
func (s *sockets) hold(d *datagram, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == nil {
		s.asked = map[*datagram]struct{}{}
	}
	s.asked[d] = struct{}{}
	if len(s.asked) >= busySockets {
		s.busyUntil = now.Add(busyTime)
	}
}

// release notes that d carries none any more, and keeps it, if it is good, while there is load.
func (s *sockets) release(d *datagram, good bool) (kept bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.asked, d)
	if !good || s.ended || time.Now().After(s.busyUntil) {
		return false
	}
	if s.idle == nil {
		s.idle = map[target][]*datagram{}
	}
	s.idle[d.server] = append(s.idle[d.server], d)
	if s.sweeper == nil {
		s.sweeper = time.AfterFunc(maxSocketAge, s.sweep)
	}
	return true
}

// sweep closes the idle sockets that will not be used again, and runs again for the others.
func (s *sockets) sweep() {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for server, idle := range s.idle {
		s.idle[server] = slices.DeleteFunc(idle, func(d *datagram) bool {
			old := d.old(now) || now.After(s.busyUntil)
			if old {
				d.Close()
			}
			return old
		})
		if len(s.idle[server]) == 0 {
			delete(s.idle, server)
		}
	}
	if s.sweeper = nil; len(s.idle) > 0 {
		s.sweeper = time.AfterFunc(maxSocketAge, s.sweep)
	}
}

// end ends every wait for an answer, and closes the idle sockets. Those that carry a
// question are closed by done.
func (s *sockets) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for d := range s.asked {
		d.SetReadDeadline(atOnce())
	}
	for _, idle := range s.idle {
		for _, d := range idle {
			d.Close()
		}
	}
	s.idle = nil
	if s.sweeper != nil {
		s.sweeper.Stop()
		s.sweeper = nil
	}
}

func (d *datagram) old(now time.Time) bool { return now.Sub(d.opened) > maxSocketAge }

// fresh says whether d may carry another question: it is not old, and nothing has
// come to it since its last answer.
func (d *datagram) fresh(now time.Time) bool {
	if d.old(now) {
		return false
	}
	waiting, err := unix.IoctlGetInt(d.fd, unix.SIOCINQ) // udp(7)
	return err == nil && waiting == 0
}
