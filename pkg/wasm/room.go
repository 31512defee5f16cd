package wasm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// maxStore bounds all modules together.
	maxStore = 512 << 20
	// fresh is how long what was used or written just now is left alone: who asked for it has not said yet that it is in use.
	fresh = 10 * time.Minute
	// purgeEvery is the time between two looks for what is old. The first is as long after the start, since what served before it is asked
	// for again meanwhile.
	purgeEvery = time.Hour
)

// kept is a module in the store.
type kept struct {
	hash string
	size int64
	used time.Time
	held bool // by this process or another: it is in use
}

// modules are those in the store, the longest unused first.
func (s *Store) modules() ([]kept, error) {
	files, err := os.ReadDir(filepath.Join(s.cfg.Dir, modulesDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []kept
	for _, file := range files {
		hash := isModule(file.Name())
		info, err := file.Info()
		if hash == "" || err != nil { // it has just gone
			continue
		}
		all = append(all, kept{hash, info.Size(), info.ModTime(), s.isHeld(hash)})
	}
	slices.SortFunc(all, func(a, b kept) int { return a.used.Compare(b.used) })
	return all, err
}

// isHeld says whether somebody, of whatever process, uses a module: who does has a lock on its file. The lock goes with the process.
func (s *Store) isHeld(hash string) bool {
	f, err := os.Open(s.modulePath(hash))
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(flock(f, syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// Kept is a module in the store, as JSON.
type Kept struct {
	SHA256 string    `json:"sha256"`
	Size   int64     `json:"size"`
	Used   time.Time `json:"used"`           // for the last time, if it is not in use
	InUse  bool      `json:"inUse"`          // by whatever process
	From   []string  `json:"from,omitempty"` // where it was had
}

// List is what the store has, the longest unused first.
func (s *Store) List() ([]Kept, error) {
	all, err := s.modules()
	if err != nil {
		return nil, err
	}
	from := map[string][]string{}
	index, _ := os.ReadDir(filepath.Join(s.cfg.Dir, indexDir)) // without it nobody knows
	for _, file := range index {
		e, ok := s.look(strings.TrimSuffix(file.Name(), entryExt))
		if ok && e.From != "" && !slices.Contains(from[e.SHA256], e.From) {
			from[e.SHA256] = append(from[e.SHA256], e.From)
		}
	}
	list := []Kept{}
	for _, m := range all {
		slices.Sort(from[m.hash])
		list = append(list, Kept{m.hash, m.size, m.used, m.held, from[m.hash]})
	}
	return list, nil
}

// Prune takes away every module that nobody uses, but those that were fetched or used within the last ten minutes, and says how many.
func (s *Store) Prune() (removed int, err error) { return s.purge(0) }

// flock is flock(2) past signals.
func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// remove takes a module away unless somebody has begun to use it. Holding it goes by the same lock, and looks after that whether it is
// still there.
func (s *Store) remove(hash string) error {
	f, err := os.Open(s.modulePath(hash))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil //nolint:nilerr // it is in use
	}
	return os.Remove(s.modulePath(hash))
}

// makeRoom takes away the longest unused modules until there is room for so many bytes.
func (s *Store) makeRoom(size int64) error {
	limit := max(maxStore, 2*s.cfg.MaxModule)
	all, err := s.modules()
	if err != nil {
		return err
	}
	used := size
	for _, m := range all {
		used += m.size
	}
	for _, m := range all {
		if used <= limit {
			return nil
		}
		if m.held || s.now().Sub(m.used) < fresh {
			continue
		}
		if err := s.remove(m.hash); err != nil {
			return err
		}
		s.cfg.Log.Info("an unused Wasm module made room", "sha256", m.hash, "bytes", m.size)
		used -= m.size
	}
	if used > limit {
		return fmt.Errorf("the store of Wasm modules is full: %d bytes of %d, and all that is in it is in use", used, limit)
	}
	return nil
}

// purge takes away what nobody has used for an age, and what pulls that were killed have left.
func (s *Store) purge(age time.Duration) (removed int, err error) {
	all, err := s.modules()
	if err != nil {
		return 0, err
	}
	for _, m := range all {
		if m.held || s.now().Sub(m.used) < max(age, fresh) {
			continue
		}
		err = errors.Join(err, s.remove(m.hash))
		removed++
	}
	return removed, errors.Join(err, s.sweep())
}

// sweep takes away what is of no use any more: halves of modules that nobody writes, and entries of the index whose module has gone.
func (s *Store) sweep() error {
	halves, err := filepath.Glob(filepath.Join(s.cfg.Dir, modulesDir, pulling+"*"))
	for _, path := range halves {
		f, openErr := os.Open(path)
		if openErr != nil {
			continue // it has just gone
		}
		info, statErr := f.Stat()
		old := statErr == nil && s.now().Sub(info.ModTime()) > fresh // it is made before it is locked
		if old && flock(f, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			err = errors.Join(err, os.Remove(path))
		}
		_ = f.Close()
	}
	index, readErr := os.ReadDir(filepath.Join(s.cfg.Dir, indexDir))
	for _, file := range index {
		key, ok := strings.CutSuffix(file.Name(), entryExt)
		info, statErr := file.Info()
		if statErr != nil || s.now().Sub(info.ModTime()) < fresh {
			continue
		}
		if e, whole := s.look(key); ok && whole {
			if _, statErr := os.Stat(s.modulePath(e.SHA256)); statErr == nil {
				continue
			}
		}
		err = errors.Join(err, os.Remove(filepath.Join(s.cfg.Dir, indexDir, file.Name())))
	}
	if errors.Is(readErr, fs.ErrNotExist) {
		readErr = nil
	}
	return errors.Join(err, readErr)
}

// purgeNow and then: when an hour has passed since the last time.
func (s *Store) purgeSometimes() {
	s.mu.Lock()
	due := s.now().Sub(s.purged) >= purgeEvery
	if due {
		s.purged = s.now()
	}
	s.mu.Unlock()
	if !due {
		return
	}
	if _, err := s.purge(s.cfg.MaxAge); err != nil {
		s.cfg.Log.Warn("the store of Wasm modules cannot be cleaned up", "err", err)
	}
}

// Retain says which modules are in use, by their hashes, and are to stay: the current ones, the last good ones, and those that linger
// in whatever drains. All others are unused from now on. A module that is not there any more is an error.
func (s *Store) Retain(hashes ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, hash := range hashes {
		if s.held[hash] == nil {
			f, holdErr := s.hold(hash)
			if holdErr != nil {
				err = errors.Join(err, fmt.Errorf("keep the Wasm module %s: %w", hash, holdErr))
				continue
			}
			s.held[hash] = f
		}
	}
	now := s.now()
	for hash, f := range s.held {
		_ = os.Chtimes(s.modulePath(hash), now, now) // it counts from now on
		if !slices.Contains(hashes, hash) {
			_ = f.Close()
			delete(s.held, hash)
		}
	}
	return err
}

// hold locks a module's file, for as long as it is open.
func (s *Store) hold(hash string) (*os.File, error) {
	f, err := os.Open(s.modulePath(hash))
	if err != nil {
		return nil, err
	}
	err = flock(f, syscall.LOCK_SH) // whoever takes it away has it for a moment only
	if err == nil {                 // somebody may have taken it away between opening and locking
		var info, there os.FileInfo
		info, err = f.Stat()
		if err == nil {
			there, err = os.Stat(s.modulePath(hash))
		}
		if err == nil && !os.SameFile(info, there) {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
