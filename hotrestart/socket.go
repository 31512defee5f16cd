// Package hotrestart owns a named set of listening sockets. The packages below pass it on:
// hotrestart/envoy between an agent and its Envoy, hotrestart/handoff between two agents.
package hotrestart

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// envoyPrefix begins the names of the sockets that Envoy listens on.
const envoyPrefix = "envoy "

// Socket is one listening socket on its way into a set or out of it: a name that says
// what it is, and a descriptor of ours.
type Socket struct {
	// Name is the same in every generation, for example "envoy tcp://0.0.0.0:15001 0"
	// (address and worker, see EnvoySocketName), "agent status tcp 0" or
	// "agent dns udp 127.0.0.1:15053".
	Name string
	// File is closed by whoever holds the Socket. Never call its Fd method: it may make the
	// socket a blocking one also for other processes that have it, and a worker of Envoy's
	// then hangs in accept(2).
	File *os.File
}

// held is a socket inside a set. It is a bare descriptor and no os.File, because Go
// adds every File of a non-blocking socket to its poller: each connection that Envoy
// accepts would then wake the agent as well.
type held struct {
	name string
	fd   int
}

// Sockets is an ordered set of sockets, each name once. It owns its descriptors from
// Add to Close. The zero value is an empty set; its methods may be called from any
// goroutine, but a set must not be copied.
type Sockets struct {
	mu     sync.Mutex
	list   []held
	closed bool
}

// Add takes the socket over, behind those that are there, and closes socket.File, also
// when it fails: the name is taken, or the set was closed.
func (s *Sockets) Add(socket Socket) error {
	if socket.File == nil {
		return fmt.Errorf("add socket %q: no file", socket.Name)
	}
	defer socket.File.Close()
	raw, err := socket.File.SyscallConn()
	if err != nil {
		return fmt.Errorf("add socket %q: %w", socket.Name, err)
	}
	var fd int
	var copyErr error
	if err := raw.Control(func(original uintptr) { fd, copyErr = copyDescriptor(int(original)) }); err != nil {
		return fmt.Errorf("add socket %q: %w", socket.Name, err)
	}
	if copyErr != nil {
		return fmt.Errorf("add socket %q: %w", socket.Name, copyErr)
	}
	return s.AddDescriptor(socket.Name, fd)
}

// AddDescriptor is Add for a bare descriptor, such as one that was received. The set
// owns fd from here on, and closes it when it fails.
func (s *Sockets) AddDescriptor(name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return errors.Join(fmt.Errorf("add socket %q: the set was closed", name), unix.Close(fd))
	case s.index(name) >= 0:
		return errors.Join(fmt.Errorf("add socket %q: there is one of this name", name), unix.Close(fd))
	}
	s.list = append(s.list, held{name, fd})
	return nil
}

// Get returns a copy of the socket of that name, which the caller closes. The error
// wraps os.ErrNotExist when there is none.
func (s *Sockets) Get(name string) (*os.File, error) {
	fd, err := s.Copy(name)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Copy is Get for a bare descriptor, close-on-exec.
func (s *Sockets) Copy(name string) (fd int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.index(name)
	if i < 0 {
		return -1, fmt.Errorf("copy socket %q: %w", name, os.ErrNotExist)
	}
	if fd, err = copyDescriptor(s.list[i].fd); err != nil {
		return -1, fmt.Errorf("copy socket %q: %w", name, err)
	}
	return fd, nil
}

// CopyForEnvoy copies the socket of one worker of the listener at address, in the form
// that ParentConfig.Sockets wants.
func (s *Sockets) CopyForEnvoy(address string, worker uint32) (fd int, ok bool) {
	fd, err := s.Copy(EnvoySocketName(address, worker))
	return fd, err == nil
}

// Each calls visit for every socket, in order, until it fails, and returns its error.
// fd is valid during the call, and visit must call no method of this set.
func (s *Sockets) Each(visit func(name string, fd int) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.list {
		if err := visit(h.name, h.fd); err != nil {
			return err
		}
	}
	return nil
}

// Names returns the names, in the order in which they were added.
func (s *Sockets) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.list))
	for _, h := range s.list {
		names = append(names, h.name)
	}
	return names
}

// Len is the number of sockets.
func (s *Sockets) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.list)
}

// Retain closes and forgets every socket whose name keep refuses.
func (s *Sockets) Retain(keep func(name string) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	s.list = slices.DeleteFunc(s.list, func(h held) bool {
		if keep(h.name) {
			return false
		}
		errs = append(errs, closeHeld(h))
		return true
	})
	return errors.Join(errs...)
}

// Dup returns a set with copies of all descriptors, which the caller closes. Both sets
// stand for the same sockets of the kernel: a socket goes when its last copy is closed.
func (s *Sockets) Dup() (*Sockets, error) {
	copied := new(Sockets)
	err := s.Each(func(name string, fd int) error {
		duplicate, err := copyDescriptor(fd)
		if err != nil {
			return fmt.Errorf("copy socket %q: %w", name, err)
		}
		copied.list = append(copied.list, held{name, duplicate})
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, copied.Close())
	}
	return copied, nil
}

// Close closes every descriptor, once: a second call does nothing. Sockets that are
// added later are closed at once.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, h := range s.list {
		errs = append(errs, closeHeld(h))
	}
	s.list, s.closed = nil, true
	return errors.Join(errs...)
}

func (s *Sockets) index(name string) int {
	return slices.IndexFunc(s.list, func(h held) bool { return h.name == name })
}

func closeHeld(h held) error {
	if err := unix.Close(h.fd); err != nil {
		return fmt.Errorf("close socket %q: %w", h.name, err)
	}
	return nil
}

// copyDescriptor duplicates fd, close-on-exec as all of ours are.
func copyDescriptor(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
}

// EnvoySocketName names the socket of one worker of a listener of Envoy's. The address
// is as Envoy writes it: "tcp://0.0.0.0:15001", "tcp://[::]:15006", "unix:///path".
func EnvoySocketName(address string, worker uint32) string {
	return envoyPrefix + address + " " + strconv.FormatUint(uint64(worker), 10)
}

// ParseEnvoySocketName is the inverse of EnvoySocketName; ok is false for every other
// name.
func ParseEnvoySocketName(name string) (address string, worker uint32, ok bool) {
	rest, isEnvoys := strings.CutPrefix(name, envoyPrefix)
	// The last space: the path of a Unix socket may have some of its own.
	space := strings.LastIndexByte(rest, ' ')
	if !isEnvoys || space <= 0 {
		return "", 0, false
	}
	address = rest[:space]
	n, err := strconv.ParseUint(rest[space+1:], 10, 32)
	if err != nil || EnvoySocketName(address, uint32(n)) != name {
		return "", 0, false
	}
	return address, uint32(n), true
}
