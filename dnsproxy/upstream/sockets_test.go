package upstream

import (
	"net"
	"net/netip"
	"testing"
	"time"
)

// portsUpstream is a server that answers only when it is told to.
type portsUpstream struct {
	*net.UDPConn
	target target
}

func newPortsUpstream(t *testing.T) portsUpstream {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return portsUpstream{conn, target{AddrPort: conn.LocalAddr().(*net.UDPAddr).AddrPort()}}
}

// asked returns the port that the next question comes from.
func (u portsUpstream) asked(t *testing.T) netip.AddrPort {
	t.Helper()
	var buf [64]byte
	u.SetReadDeadline(time.Now().Add(20 * time.Second))
	_, from, err := u.ReadFromUDPAddrPort(buf[:])
	if err != nil {
		t.Fatal(err)
	}
	return from
}

func ask(t *testing.T, s *sockets, u portsUpstream) (*datagram, netip.AddrPort) {
	t.Helper()
	d, err := s.ask(u.target, []byte("?"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return d, u.asked(t)
}

// askMany asks n questions that wait at the same time.
func askMany(t *testing.T, s *sockets, u portsUpstream, n int) (out []*datagram, ports map[netip.AddrPort]int) {
	t.Helper()
	ports = map[netip.AddrPort]int{}
	for range n {
		d, from := ask(t, s, u)
		out = append(out, d)
		ports[from]++
	}
	return out, ports
}

// Questions that come one after the other have a port each.
func TestQuestionsHavePortsOfTheirOwn(t *testing.T) {
	u := newPortsUpstream(t)
	var s sockets
	defer s.end()
	const questions = 50
	last := map[netip.AddrPort]bool{}
	again := 0
	for range questions {
		d, from := ask(t, &s, u)
		s.done(d, true)
		if last[from] {
			again++
		}
		last[from] = true
		if idle, _, _ := s.counts(); idle != 0 {
			t.Fatalf("%d sockets are kept", idle)
		}
	}
	if again > questions/10 { // the kernel may pick one twice
		t.Errorf("%d of %d ports were used before", again, questions)
	}
}

// Under load ports are used again, a bounded number of times and for one question
// at a time, and not for long.
func TestSocketsAreUsedAgainUnderLoad(t *testing.T) {
	u := newPortsUpstream(t)
	var s sockets
	defer s.end()
	const waiting = 2 * busySockets
	seen, uses := map[netip.AddrPort]bool{}, map[*datagram]int{}
	const rounds = maxSocketUses + 2
	for range rounds {
		out, ports := askMany(t, &s, u, waiting)
		if len(ports) != waiting {
			t.Fatalf("%d questions that wait at the same time have %d ports", waiting, len(ports))
		}
		for from := range ports {
			seen[from] = true
		}
		for _, d := range out {
			uses[d]++
			s.done(d, true)
		}
	}
	for _, n := range uses { // not by port: the kernel may give one to several, one after the other
		if n > maxSocketUses {
			t.Errorf("a socket was used %d times", n)
		}
	}
	if all := waiting * rounds; len(seen) > all/2 {
		t.Errorf("%d questions have %d ports: none is used again", all, len(seen))
	}
	old := map[*datagram]bool{}
	s.mu.Lock()
	for _, d := range s.idle[u.target] {
		d.opened = d.opened.Add(-2 * maxSocketAge)
		old[d] = true
	}
	s.mu.Unlock()
	out, _ := askMany(t, &s, u, waiting)
	for _, d := range out {
		if old[d] {
			t.Error("a socket is used again that was opened long ago")
		}
		s.done(d, true)
	}
}

// What came to a port before its question is no answer to it: a forger would have
// had time to send many.
func TestSocketsWithSomethingInThemAreNotUsedAgain(t *testing.T) {
	u := newPortsUpstream(t)
	var s sockets
	defer s.end()
	out, ports := askMany(t, &s, u, 2*busySockets)
	for _, d := range out {
		s.done(d, true)
	}
	if idle, _, _ := s.counts(); idle == 0 {
		t.Fatal("no socket is kept")
	}
	for from := range ports {
		if _, err := u.WriteToUDPAddrPort([]byte("!"), from); err != nil {
			t.Fatal(err)
		}
	}
	out, _ = askMany(t, &s, u, 2*busySockets)
	for _, d := range out {
		s.done(d, false)
		if d.uses != 1 {
			t.Errorf("a socket was used %d times", d.uses)
		}
	}
}

// A question that had no answer may have one later: its socket is not used again.
// Nor does anything stay open when the load is over.
func TestSocketsAreClosed(t *testing.T) {
	u := newPortsUpstream(t)
	var s sockets
	out, _ := askMany(t, &s, u, 2*busySockets)
	for i, d := range out {
		s.done(d, i%2 == 0)
	}
	if idle, _, _ := s.counts(); idle != busySockets {
		t.Errorf("%d sockets are kept of %d with an answer", idle, busySockets)
	}
	s.mu.Lock()
	s.busyUntil = time.Now().Add(-time.Second)
	s.mu.Unlock()
	s.sweep()
	if idle, _, sweeping := s.counts(); idle != 0 || sweeping {
		t.Errorf("after the load: %d idle, sweeping: %v", idle, sweeping)
	}
	for _, d := range out {
		if err := d.Close(); err == nil {
			t.Error("a socket is still open")
		}
	}
	out, _ = askMany(t, &s, u, 2*busySockets)
	for _, d := range out {
		s.done(d, true)
	}
	s.end()
	if idle, asked, sweeping := s.counts(); idle != 0 || sweeping || asked != 0 {
		t.Errorf("after the end: %d idle, %d asked, sweeping: %v", idle, asked, sweeping)
	}
}

// counts is how many sockets are idle and how many asked, and whether the sweeper will come.
func (s *sockets) counts() (idle, asked int, sweeping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, list := range s.idle {
		idle += len(list)
	}
	return idle, len(s.asked), s.sweeper != nil
}
