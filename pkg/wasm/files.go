package wasm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/internal/atomicfile"
	"understudy.mesh/pkg/wasm/internal/frame"
)

// The layout of a store.
const (
	modulesDir = "sha256"    // <hash>.wasm, for everybody to read: an Envoy may run as another user
	indexDir   = "index"     // <hash of a name>.json: what came from where, and what an Envoy has tried
	moduleExt  = ".wasm"     // of a whole module
	entryExt   = ".json"     // of an entry of the index
	pulling    = ".pulling-" // begins the name of one that is being written
)

const (
	moduleMode = 0o644
	dirMode    = 0o755
	indexMode  = 0o700
)

func (s *Store) modulePath(hash string) string {
	return filepath.Join(s.cfg.Dir, modulesDir, hash+moduleExt)
}

// makeDirs makes the store, which nobody does before there is something to keep.
func (s *Store) makeDirs() error {
	return errors.Join(os.MkdirAll(filepath.Join(s.cfg.Dir, modulesDir), dirMode), os.MkdirAll(filepath.Join(s.cfg.Dir, indexDir), indexMode))
}

// save reads a module, out of its boxes, and keeps it by its hash. A crash at any moment leaves a whole module or none: it is written
// beside, flushed to the disk, and renamed. verify is asked about its hash, in hexadecimal, once all was read.
func (s *Store) save(in io.Reader, verify func(hash string) error) (Module, error) {
	if err := s.makeDirs(); err != nil {
		return Module{}, err
	}
	dir := filepath.Join(s.cfg.Dir, modulesDir)
	f, err := os.CreateTemp(dir, pulling+"*")
	if err != nil {
		return Module{}, err
	}
	defer func() {
		_ = os.Remove(f.Name()) // it has another name if all went well
		_ = f.Close()
	}()
	// Who cleans up sees by the lock that it is being written: a process that has ended holds none.
	if err := flock(f, syscall.LOCK_EX); err != nil {
		return Module{}, err
	}
	s.step("created")
	boxed, err := unbox(in, s.cfg.MaxModule)
	if err != nil {
		return Module{}, err
	}
	hash := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, hash), boxed)
	m := Module{SHA256: hex.EncodeToString(hash.Sum(nil)), Size: size}
	if err == nil {
		err = boxed.finish()
	}
	if err == nil {
		err = verify(m.SHA256)
	}
	if err != nil {
		return Module{}, err
	}
	s.step("written")
	m.Path = s.modulePath(m.SHA256)
	began := time.Now()
	if m.ABI, err = checkFile(f, size); err != nil {
		return Module{}, err
	}
	m.Took.Verify = time.Since(began)
	if err := s.makeRoom(size); err != nil {
		return Module{}, err
	}
	if err := errors.Join(f.Chmod(moduleMode), f.Sync()); err != nil {
		return Module{}, err
	}
	s.step("synced")
	if err := os.Rename(f.Name(), m.Path); err != nil {
		return Module{}, err
	}
	s.step("renamed")
	s.remember(m.SHA256)
	return m, syncDir(dir)
}

// Check reads the frame of a module of so many bytes. The error says in words what an Envoy would only call "Unable to create Wasm plugin".
func Check(module io.ReaderAt, size int64) (frame.Info, error) { return frame.Check(module, size) }

func checkFile(f *os.File, size int64) (abi string, err error) {
	info, err := Check(f, size)
	return info.ABI, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// whole says whether the store has a module, and of what size. It is hashed when this process uses it first, as the disk may have
// changed it, and is taken away if it is another.
func (s *Store) whole(hash string) (int64, bool) {
	if !hexSHA256.MatchString(hash) {
		return 0, false
	}
	path := s.modulePath(hash)
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, false
	}
	if !s.remembers(hash) {
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil || hex.EncodeToString(sum.Sum(nil)) != hash {
			s.cfg.Log.Warn("a Wasm module in the store is not what it was, and is fetched again", "file", path, "err", err)
			_ = os.Remove(path)
			return 0, false
		}
		s.remember(hash)
	}
	// What was used just now is not what is cleaned up; it may have been in this moment.
	now := s.now()
	return info.Size(), os.Chtimes(path, now, now) == nil
}

func (s *Store) remember(hash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hashed[hash] = true
}

func (s *Store) remembers(hash string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hashed[hash]
}

// entry is what the index has of a source: which module it was, and of which manifest.
type entry struct {
	From    string    `json:"from,omitempty"` // for people; "" of a trial
	SHA256  string    `json:"sha256"`
	Digests []string  `json:"digests,omitempty"`
	ETag    string    `json:"etag,omitempty"`
	ABI     string    `json:"abi,omitempty"`
	At      time.Time `json:"at"`
}

// maxEntry bounds a file of the index.
const maxEntry = 64 << 10

func (s *Store) entryPath(key string) string { return filepath.Join(s.cfg.Dir, indexDir, key+entryExt) }

// look reads an entry of the index. One that is broken is none.
func (s *Store) look(key string) (e entry, ok bool) {
	f, err := os.Open(s.entryPath(key))
	if err != nil {
		return e, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEntry))
	return e, err == nil && json.Unmarshal(data, &e) == nil && hexSHA256.MatchString(e.SHA256)
}

// note writes an entry of the index.
func (s *Store) note(key string, e entry) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	s.step("noting")
	_, err = atomicfile.Replace(s.entryPath(key), func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the index of the store: %w", err)
	}
	s.step("noted")
	return err
}

// read keeps a module of a file that is not the store's, which somebody may change or take away.
func (s *Store) read(ctx context.Context, path string) (*fetched, error) {
	// Not blocking: nobody may ever write to what is a FIFO.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w; it is read as soon as it is there", err)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no regular file", path)
	case info.Size() > s.cfg.MaxModule:
		err = &tooLargeError{"it has", s.cfg.MaxModule}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &fetched{size: info.Size(), open: func(context.Context) (io.ReadCloser, error) { return f, ctx.Err() }}, nil
}

// isModule is the hash of a module by the name of its file, "" for another file.
func isModule(name string) string {
	hash, ok := strings.CutSuffix(name, moduleExt)
	if !ok || !hexSHA256.MatchString(hash) {
		return ""
	}
	return hash
}
