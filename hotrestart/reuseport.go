package hotrestart

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// RestrictReuseport has the kernel give new connections only to those sockets of all that
// used has as well, for a new Envoy with fewer workers than the one before: the old Envoy
// accepts what waits in the others before they are closed, which would reset it. It returns
// how many listeners that concerns. Undo it by UnrestrictReuseport once the other sockets
// are closed, or when the old Envoy is to go on.
//
// The sockets of one address are a reuseport group (socket(7)), which a classic BPF
// program may choose from by their index: the order in which they began to listen, which
// is that of Envoy's workers. Where it is not, an index leads to another socket of the
// group, or to none, and the kernel chooses as usual.
func RestrictReuseport(all, used *Sockets) (restricted int, err error) {
	var errs []error
	had, has := workersOf(all), workersOf(used)
	for address, n := range had {
		if has[address] == 0 || has[address] >= n {
			continue
		}
		if err := restrict(used, address, has[address]); err != nil {
			errs = append(errs, err)
			continue
		}
		restricted++
	}
	return restricted, errors.Join(errs...)
}

// workersOf counts the sockets of each listener of Envoy's.
func workersOf(s *Sockets) map[string]uint32 {
	workers := map[string]uint32{}
	for _, name := range s.Names() {
		if address, _, ok := ParseEnvoySocketName(name); ok {
			workers[address]++
		}
	}
	return workers
}

// restrict attaches a program that draws one of the first n sockets of the group.
func restrict(s *Sockets, address string, n uint32) error {
	const random = 0xfffff000 + 56 // SKF_AD_OFF + SKF_AD_RANDOM, linux/filter.h
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: random},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: n},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
	fd, err := s.Copy(EnvoySocketName(address, 0))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_CBPF,
		&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("keep new connections from the surplus sockets of %s: %w", address, err)
	}
	return nil
}

// UnrestrictReuseport undoes RestrictReuseport for every listener in s. It does no harm where there is nothing to undo.
func UnrestrictReuseport(s *Sockets) error {
	var errs []error
	for address := range workersOf(s) {
		fd, err := s.Copy(EnvoySocketName(address, 0))
		if err != nil {
			continue // another worker's only: never restricted
		}
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0)
		unix.Close(fd)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // no program; no group
			errs = append(errs, fmt.Errorf("give new connections to all sockets of %s again: %w", address, err))
		}
	}
	return errors.Join(errs...)
}
