package envoy

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"understudy.mesh/internal/unixsock"
)

const (
	// idsPerBase is what Envoy multiplies a base id with; an epoch is added to it.
	idsPerBase = 10
	// maxBase keeps every id below 2^31: Envoy holds it in an int, and the names of its
	// sockets bear a negative one as a number of 20 digits.
	maxBase = (math.MaxInt32 - idsPerBase + 1) / idsPerBase
	// longestSuffix is the longest of what is appended to Rendezvous.Path.
	longestSuffix = "_udp_parent_2147483647"

	// Every Envoy is started at epoch 1, so that it looks for a parent, and its own agent
	// is both its neighbours: the parent of epoch 0 and the child of epoch 2.
	parentEpoch = 0
	envoyEpoch  = 1
	childEpoch  = 2
)

// Rendezvous is where one Envoy and its agent find each other. Give every process of
// Envoy one of its own: Envoy replaces the sockets of another one of the same Base.
type Rendezvous struct {
	// Path is the beginning of the paths of all sockets; its directory exists and is
	// writable for Envoy and agent, and for nobody else. At most 85 bytes.
	Path string
	// Base is Envoy's --base-id, see CreateSharedMemory.
	Base uint32
}

// check says what is wrong with the path or the base id.
func (r Rendezvous) check() error {
	switch {
	case !filepath.IsAbs(r.Path):
		return fmt.Errorf("hot-restart socket path %q: it must be absolute", r.Path)
	case len(r.Path)+len(longestSuffix) > unixsock.MaxPath:
		return fmt.Errorf("hot-restart socket path %q has %d bytes, and at most %d fit: use a shorter directory",
			r.Path, len(r.Path), unixsock.MaxPath-len(longestSuffix))
	case r.Base > maxBase:
		return fmt.Errorf("hot-restart base id %d is above %d", r.Base, maxBase)
	}
	return nil
}

// socket is the path at which the process of that epoch plays that role.
func (r Rendezvous) socket(role string, epoch uint32) string {
	return r.Path + "_" + role + "_" + strconv.FormatUint(uint64(r.Base)*idsPerBase+uint64(epoch), 10)
}

func (r Rendezvous) parentSocket() string      { return r.socket("parent", parentEpoch) }
func (r Rendezvous) childSocket() string       { return r.socket("child", childEpoch) }
func (r Rendezvous) envoyParentSocket() string { return r.socket("parent", envoyEpoch) }
func (r Rendezvous) envoyChildSocket() string  { return r.socket("child", envoyEpoch) }

// RemoveLeftovers removes the sockets that Envoy leaves behind. Call it once Envoy has
// ended: those of a living Envoy are gone for good.
func (r Rendezvous) RemoveLeftovers() error {
	var errs []error
	for _, path := range []string{
		r.envoyParentSocket(), r.envoyChildSocket(),
		r.socket("udp_parent", envoyEpoch), r.socket("udp_child", envoyEpoch),
	} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a socket of Envoy's: %w", err))
		}
	}
	return errors.Join(errs...)
}

// ArgsConfig is what Args makes arguments of.
type ArgsConfig struct {
	Rendezvous Rendezvous
	// ParentShutdown is how long Envoy serves before it asks its parent to terminate: it
	// then no longer asks for sockets, so that a listener that it gets later is bound
	// afresh. Cut to whole seconds, at least 1.
	ParentShutdown time.Duration
	// SkipStats keeps Envoy from asking for statistics, once as it starts and then every
	// 5 s (--skip-hot-restart-parent-stats; Envoy 1.31 and newer).
	SkipStats bool
}

// Args gives the arguments with which an Envoy takes part in a hot restart whose
// parent is a Parent at the same Rendezvous. They replace --disable-hot-restart;
// --drain-time-s is not among them.
func Args(c ArgsConfig) []string {
	args := []string{
		"--base-id", strconv.FormatUint(uint64(c.Rendezvous.Base), 10),
		"--restart-epoch", strconv.Itoa(envoyEpoch),
		"--socket-path", c.Rendezvous.Path,
		"--socket-mode", fmt.Sprintf("%04o", socketMode),
		"--parent-shutdown-time-s", strconv.FormatInt(max(int64(c.ParentShutdown/time.Second), 1), 10),
	}
	if c.SkipStats {
		args = append(args, "--skip-hot-restart-parent-stats")
	}
	return args
}

// validListenAddress refuses what Envoy cannot parse: some versions throw, and end, on
// an address that is none.
func validListenAddress(address string) error {
	if path, isUnix := strings.CutPrefix(address, "unix://"); isUnix && path != "" {
		return nil
	}
	hostPort, isTCP := strings.CutPrefix(address, "tcp://")
	if !isTCP {
		return fmt.Errorf("listener address %q: it must begin with tcp:// or unix://", address)
	}
	if _, err := netip.ParseAddrPort(hostPort); err != nil {
		return fmt.Errorf("listener address %q: %w", address, err)
	}
	return nil
}
