// Package sockets owns a copy of every listening socket of a generation: the agent's own,
// and those of its Envoy.
package sockets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/status"
)

// fetchTimeout bounds how long Envoy may take to say what it listens on. It runs on
// Envoy's main thread, which a large update keeps busy; a newcomer waits 10 s.
const fetchTimeout = 4 * time.Second

// Use is what a socket of the agent's is for.
type Use string

// The agent's own ports.
const (
	UseStatus Use = "status" // --statusPort
	UseProbe  Use = "probe"  // what the kubelet asks, where that is another port
	UseAdmin  Use = "admin"
	useDNS    Use = "dns"
)

// Set is what a hand-off gives, and what an Envoy that is started again after a crash listens on:
// no connection is refused meanwhile.
type Set struct {
	cfg *config.Config
	log *slog.Logger

	mu sync.Mutex
	// own are the agent's, envoy those that its Envoy had when it was last asked.
	own, envoy *hotrestart.Sockets
	// given came from the generation before; nil once this one stands for itself.
	given  *hotrestart.Sockets
	closed bool
}

// New takes the agent's own sockets from given (nil: there is no generation
// before), and binds those that are not there. It binds everything or nothing. given
// stays the caller's if it fails.
func New(cfg *config.Config, given *hotrestart.Sockets, log *slog.Logger) (_ *Set, err error) {
	s := &Set{cfg: cfg, log: log, own: new(hotrestart.Sockets), envoy: new(hotrestart.Sockets), given: given}
	defer func() {
		if err != nil {
			s.given = nil
			s.Close()
		}
	}()
	statusPort := StatusPort(cfg)
	if err := s.listen(UseStatus, status.Socket{Port: statusPort, Use: "the status server", Setting: "--statusPort"}); err != nil {
		return nil, err
	}
	if HasProbePort(cfg) {
		if err := s.listen(UseProbe, status.Socket{Port: cfg.ReadyPort, Use: "the kubelet's readiness probe", Setting: "ENVOY_STATUS_PORT"}); err != nil {
			return nil, err
		}
	}
	if err := s.listen(UseAdmin, status.Socket{Port: cfg.AdminPort, Loopback: true, Use: "Envoy's admin API", Setting: "--proxyAdminPort"}); err != nil {
		return nil, err
	}
	if cfg.DNSCapture {
		err = s.listenDNS(cfg.DNSAddrs)
	}
	return s, err
}

// StatusPort is --statusPort; 0 there means that what the kubelet asks is all that is served.
func StatusPort(cfg *config.Config) uint16 { return cmp.Or(cfg.StatusPort, cfg.ReadyPort) }

// HasProbePort tells whether the kubelet has a port of its own to ask at: it may be the status port, and a bootstrap
// of somebody else's has a listener there itself.
func HasProbePort(cfg *config.Config) bool {
	return cfg.ReadyPort != StatusPort(cfg) && cfg.CustomConfigFile == ""
}

func tcpName(use Use, port uint16, i int) string {
	return fmt.Sprintf("agent %s tcp %d %d", use, port, i)
}

func dnsName(network string, addr netip.AddrPort) string {
	return fmt.Sprintf("agent %s %s %s", useDNS, network, addr)
}

// listen takes the sockets of one port over, or binds them.
func (s *Set) listen(use Use, socket status.Socket) error {
	if s.inherit(tcpName(use, socket.Port, 0)) {
		s.inherit(tcpName(use, socket.Port, 1)) // the other family's
		return nil
	}
	listeners, err := status.Listen(socket)
	if err != nil {
		return err
	}
	for i, l := range listeners {
		err = errors.Join(err, s.adopt(tcpName(use, socket.Port, i), l.(*net.TCPListener)))
	}
	return err
}

func (s *Set) listenDNS(addrs []netip.AddrPort) error {
	for _, addr := range addrs {
		udp, tcp := s.inherit(dnsName("udp", addr)), s.inherit(dnsName("tcp", addr))
		if udp && tcp {
			continue
		}
		if udp || tcp {
			return fmt.Errorf("the generation before gave one of the two DNS sockets of %s", addr)
		}
		conns, listeners, err := dnsproxy.Listen([]netip.AddrPort{addr})
		if errors.Is(err, unix.EADDRINUSE) {
			return fmt.Errorf("%w; %s", err, status.Taken(addr.Port(), "DNS_PROXY_ADDR"))
		}
		if err != nil {
			return err
		}
		if err := errors.Join(s.adopt(dnsName("udp", addr), conns[0]), s.adopt(dnsName("tcp", addr), listeners[0])); err != nil {
			return err
		}
	}
	return nil
}

// inherit copies a socket of the generation before into this one's own.
func (s *Set) inherit(name string) bool {
	if s.given == nil {
		return false
	}
	fd, err := s.given.Copy(name)
	return err == nil && s.own.AddDescriptor(name, fd) == nil
}

// adopt puts a copy of a socket that was just bound into the set, and closes it.
func (s *Set) adopt(name string, bound interface {
	File() (*os.File, error)
	Close() error
}) error {
	defer bound.Close()
	f, err := bound.File()
	if err != nil {
		return fmt.Errorf("copy the socket %q: %w", name, err)
	}
	return s.own.Add(hotrestart.Socket{Name: name, File: f})
}

// Listeners returns copies of the sockets of one port, which the caller closes.
func (s *Set) Listeners(use Use, port uint16) (listeners []net.Listener, err error) {
	for i := range 2 {
		l, err := s.listener(tcpName(use, port, i))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return listeners, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func (s *Set) listener(name string) (net.Listener, error) {
	f, err := s.own.Get(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on the socket %q: %w", name, err)
	}
	return l, nil
}

// DNS returns copies of the DNS sockets, which the caller closes: all of them, or none when it fails.
func (s *Set) DNS() (udp []*net.UDPConn, tcp []*net.TCPListener, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, conn := range udp {
			conn.Close()
		}
		for _, l := range tcp {
			l.Close()
		}
	}()
	for _, addr := range s.cfg.DNSAddrs {
		u, err := s.own.Get(dnsName("udp", addr))
		if err != nil {
			return udp, tcp, err
		}
		conn, err := net.FilePacketConn(u)
		u.Close()
		if err != nil {
			return udp, tcp, fmt.Errorf("read from the socket %q: %w", u.Name(), err)
		}
		udp = append(udp, conn.(*net.UDPConn))
		l, err := s.listener(dnsName("tcp", addr))
		if err != nil {
			return udp, tcp, err
		}
		tcp = append(tcp, l.(*net.TCPListener))
	}
	return udp, tcp, nil
}

// ForEnvoy copies the socket of one worker of a listener of Envoy's: what its
// predecessor in this generation had, or what the generation before gave.
func (s *Set) ForEnvoy(address string, worker uint32) (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, ok = s.envoy.CopyForEnvoy(address, worker); ok || s.given == nil {
		return fd, ok
	}
	return s.given.CopyForEnvoy(address, worker)
}

// Refresh asks Envoy by fetch what it listens on. When Envoy cannot say, what it said last stays.
func (s *Set) Refresh(ctx context.Context, fetch func(context.Context) (*hotrestart.Sockets, error)) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	fetched, err := fetch(ctx)
	if err != nil {
		return fmt.Errorf("ask Envoy for its listening sockets: %w", err)
	}
	s.take(fetched)
	return nil
}

// take makes fetched what Envoy has; too late, it is closed.
func (s *Set) take(fetched *hotrestart.Sockets) {
	s.mu.Lock()
	old := fetched
	if !s.closed {
		old, s.envoy = s.envoy, fetched
	}
	s.mu.Unlock()
	s.warn(old.Close())
}

// DropEnvoySockets prepares for an Envoy that binds its own ports: on copies of the sockets of the
// one before it nobody would accept, and the kernel would give them their share of the
// connections all the same.
func (s *Set) DropEnvoySockets() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warn(s.envoy.Close())
	s.envoy = new(hotrestart.Sockets)
}

// Inherits tells whether this generation has not settled yet in what it was given.
func (s *Set) Inherits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given != nil
}

// Predecessors are the sockets that the generation before has given, for it to add to
// and to take from; an empty set once they are settled.
func (s *Set) Predecessors() *hotrestart.Sockets {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given == nil {
		return new(hotrestart.Sockets)
	}
	return s.given
}

// RestrictReuseport keeps new connections from what the generation before gave and this one's Envoy,
// with fewer workers, has not taken, as long as the old Envoy still empties it.
func (s *Set) RestrictReuseport() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given == nil {
		return
	}
	listeners, err := hotrestart.RestrictReuseport(s.given, s.envoy)
	if err != nil {
		s.log.Warn("this generation has fewer workers than the one before: connections that reach a surplus socket in the last moment are reset", "err", err)
	} else if listeners > 0 {
		s.log.Info("this generation has fewer workers than the one before: the old ones get no new connections", "listeners", listeners)
	}
}

// UnrestrictReuseport undoes RestrictReuseport, whichever generation did it.
func (s *Set) UnrestrictReuseport() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warn(hotrestart.UnrestrictReuseport(s.envoy))
}

// Quench keeps whoever connects from now on from every socket: they are to be closed, and nobody
// else has them.
func (s *Set) Quench() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(hotrestart.Quench(s.envoy), hotrestart.Quench(s.own)); err != nil {
		s.log.Warn("who connects in the last moment is reset", "err", err)
	}
}

// Queued counts who waits to be accepted.
func (s *Set) Queued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	envoy, err := hotrestart.Queued(s.envoy)
	own, ownErr := hotrestart.Queued(s.own)
	if err := errors.Join(err, ownErr); err != nil {
		s.log.Debug("count who waits in the sockets", "err", err)
	}
	return envoy + own
}

// Settle ends the time of what the generation before gave: what was not taken is closed,
// so that nobody queues in a socket on which nobody accepts.
func (s *Set) Settle() {
	s.mu.Lock()
	given := s.given
	s.given = nil
	s.mu.Unlock()
	if given != nil {
		s.warn(given.Close())
	}
}

// Copy returns copies of every socket, which the caller closes.
func (s *Set) Copy() (*hotrestart.Sockets, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all, err := s.own.Dup()
	if err != nil {
		return nil, err
	}
	for _, name := range s.envoy.Names() {
		fd, err := s.envoy.Copy(name)
		if err == nil {
			err = all.AddDescriptor(name, fd)
		}
		if err != nil {
			return nil, errors.Join(err, all.Close())
		}
	}
	return all, nil
}

// Names are those of all sockets, sorted.
func (s *Set) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(append(s.own.Names(), s.envoy.Names()...)))
}

// Close closes every copy; sockets that others have live on.
func (s *Set) Close() {
	s.Settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.warn(errors.Join(s.own.Close(), s.envoy.Close()))
}

func (s *Set) warn(err error) {
	if err != nil {
		s.log.Warn("close sockets", "err", err)
	}
}
