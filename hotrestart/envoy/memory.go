package envoy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// SharedMemoryDir is where shm_open(3) keeps its segments.
	SharedMemoryDir = "/dev/shm"
	// memoryPrefix and ten times the base id are the name that Envoy gives to shm_open.
	memoryPrefix = "envoy_shared_memory_"
	// memoryMark comes behind what Envoy maps, and tells our files from those of an Envoy
	// that somebody else started.
	memoryMark = "understudy"
	// maxBaseTries is how many taken base ids are passed over. With 2^32/10 to choose from,
	// two in a row mean that something else is wrong.
	maxBaseTries = 16
)

// SharedMemory is the file that an Envoy at epoch 1 opens and does not create. It holds
// two locks between Envoys and a flag; here each Envoy has it for itself, so that
// neither a lock nor a flag of a dead one can stop the next (envoy#33446). A lock on the
// file (flock(2)) says that its agent lives.
type SharedMemory struct {
	file *os.File
	base uint32
}

// CreateSharedMemory makes the segment for one start of an Envoy of version v, in dir
// (SharedMemoryDir), under a random base id that nobody uses. The error, when dir cannot
// be written to, wraps that of the kernel: Envoy must be started with
// --disable-hot-restart then.
func CreateSharedMemory(dir string, v Version) (*SharedMemory, error) {
	if err := v.Check(); err != nil {
		return nil, err
	}
	for range maxBaseTries {
		base := newBaseID()
		file, err := os.OpenFile(memoryPath(dir, base), os.O_RDWR|os.O_CREATE|os.O_EXCL, socketMode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("create Envoy's shared memory (is %s writable for this user?): %w", dir, err)
		}
		m := &SharedMemory{file: file, base: base}
		if err := m.fill(v); err != nil {
			return nil, errors.Join(fmt.Errorf("fill Envoy's shared memory %s: %w", file.Name(), err), m.Close())
		}
		return m, nil
	}
	return nil, fmt.Errorf("create Envoy's shared memory: %d base ids in a row are taken in %s", maxBaseTries, dir)
}

// newBaseID draws a base id, which may be taken: CreateSharedMemory finds out, as it
// creates its file exclusively. 0 is what an Envoy without --base-id uses.
func newBaseID() uint32 { return 1 + rand.Uint32N(maxBase) }

// fill locks the file and writes it. The mark comes with the content, behind the lock:
// RemoveStaleSharedMemory takes no file for a dead one between the two.
func (m *SharedMemory) fill(v Version) error {
	if err := lockFile(m.file); err != nil {
		return err
	}
	content := make([]byte, v.Size, int(v.Size)+len(memoryMark))
	binary.NativeEndian.PutUint64(content, v.Size)
	binary.NativeEndian.PutUint64(content[8:], v.Version)
	_, err := m.file.WriteAt(append(content, memoryMark...), 0)
	return err
}

// Base is the base id, for a Rendezvous.
func (m *SharedMemory) Base() uint32 { return m.base }

// Close removes the file and lets go of its lock. An Envoy that has it open is not
// harmed. Closing twice does no harm.
func (m *SharedMemory) Close() error {
	if m.file == nil {
		return nil
	}
	err := os.Remove(m.file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, m.file.Close())
	m.file = nil
	return err
}

// RemoveStaleSharedMemory removes the segments of agents that were killed: those that
// bear our mark, belong to this user, and are locked by nobody. It returns how many.
func RemoveStaleSharedMemory(dir string) (removed int, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, fmt.Errorf("look for stale shared memory: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), memoryPrefix) || !entry.Type().IsRegular() {
			continue
		}
		stale, err := removeIfStale(filepath.Join(dir, entry.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("remove stale shared memory: %w", err))
		}
		if stale {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}

func removeIfStale(path string) (bool, error) {
	// O_NOFOLLOW, O_NONBLOCK: /dev/shm is a directory for everybody, as /tmp is.
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ELOOP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	if !isOurs(file) || lockFile(file) != nil {
		return false, nil
	}
	return true, os.Remove(path)
}

// isOurs says whether the file belongs to this user and ends with our mark.
func isOurs(file *os.File) bool {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() < int64(len(memoryMark)) {
		return false
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
		return false
	}
	mark := make([]byte, len(memoryMark))
	_, err = file.ReadAt(mark, info.Size()-int64(len(mark)))
	return err == nil && string(mark) == memoryMark
}

// lockFile takes the lock that goes with the last descriptor of this opening, and so
// with the process. Envoy inherits none: Go opens everything close-on-exec.
func lockFile(file *os.File) error { return unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

func memoryPath(dir string, base uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%s%d", memoryPrefix, uint64(base)*idsPerBase))
}
