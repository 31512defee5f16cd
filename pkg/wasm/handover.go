package wasm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// maxHanded bounds the modules that a successor is given, several times what the filters of one pod run.
	maxHanded = 128
	// maxHandedEntries bounds what it is told of the index: each has about 400 bytes.
	maxHandedEntries = 2048
	// importTimeout bounds how long the modules of the generation before are read, during which a newcomer does nothing else: the one before
	// gives it two minutes in all.
	importTimeout = 20 * time.Second
)

// ExportModules are the modules in use, by their hashes, for a successor whose store may be another: their files, open to be read. They are the
// caller's. What of them has gone from the store is among them.
func (s *Store) ExportModules() map[string]*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]*os.File, len(s.held))
	for _, hash := range slices.Sorted(maps.Keys(s.held)) {
		if len(all) == maxHanded {
			s.cfg.Log.Warn("not all Wasm modules in use are handed over: the newcomer fetches the others", "inUse", len(s.held), "handed", maxHanded)
			break
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", s.held[hash].Fd())) // which is there also without its name
		if err != nil {
			s.cfg.Log.Warn("a Wasm module is not handed over: the newcomer fetches it", "sha256", hash, "err", err)
			continue
		}
		all[hash] = f
	}
	return all
}

// ExportIndex is what the index has of the modules in use, for a successor: which sources have them, and with which configurations an Envoy has
// tried them; nil of none.
func (s *Store) ExportIndex() []byte {
	s.mu.Lock()
	used := slices.Collect(maps.Keys(s.held))
	s.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	index := map[string]entry{}
	files, _ := os.ReadDir(filepath.Join(s.cfg.Dir, indexDir)) // without it the newcomer asks anew
	for _, file := range files {
		key := strings.TrimSuffix(file.Name(), entryExt)
		if e, ok := s.look(key); ok && slices.Contains(used, e.SHA256) && len(index) < maxHandedEntries {
			index[key] = e
		}
	}
	data, err := json.Marshal(index)
	if err != nil { // it cannot fail
		return nil
	}
	return data
}

// Import takes over what ExportModules and ExportIndex gave, here or in another release: the modules that this store lacks, and where each
// is from. Of a module every byte is hashed: one that is not what its name says is left out, as is what does not come within 20 s or finds no
// room; the log says so, and its source is asked then. What came is in use until Retain says what is.
func (s *Store) Import(modules map[string]io.Reader, index []byte) {
	ctx, cancel := context.WithTimeout(context.Background(), importTimeout)
	defer cancel()
	came := 0
	for _, hash := range slices.Sorted(maps.Keys(modules)) {
		if err := s.adopt(ctx, hash, modules[hash]); err != nil {
			s.cfg.Log.Warn("a Wasm module of the generation before is not taken over: its source is asked", "sha256", hash, "err", err)
			continue
		}
		came++
	}
	entries := s.adoptIndex(index)
	if came > 0 {
		s.cfg.Log.Info("took Wasm modules over", "modules", came, "entries", entries)
	}
}

// adopt keeps a module of another store, and holds it.
func (s *Store) adopt(ctx context.Context, hash string, from io.Reader) error {
	if !hexSHA256.MatchString(hash) {
		return fmt.Errorf("%q is no hash: want 64 hexadecimal digits", hash)
	}
	if _, has := s.whole(hash); !has {
		_, err := s.save(timely{ctx, from}, func(got string) error {
			if got != hash {
				return fmt.Errorf("its bytes have the hash %s", got)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[hash] != nil {
		return nil
	}
	f, err := s.hold(hash)
	if err == nil {
		s.held[hash] = f
	}
	return err
}

// timely reads for as long as ctx lasts.
type timely struct {
	ctx context.Context
	in  io.Reader
}

func (t timely) Read(p []byte) (int, error) {
	if err := t.ctx.Err(); err != nil {
		return 0, err
	}
	return t.in.Read(p)
}

// adoptIndex notes, of what another store's index has of modules that this one has, what is newer than what it knows, and says how much that is.
func (s *Store) adoptIndex(data []byte) (noted int) {
	if len(data) == 0 {
		return 0
	}
	var index map[string]entry
	if err := json.Unmarshal(data, &index); err != nil {
		s.cfg.Log.Warn("where the Wasm modules of the generation before are from is not known: their sources are asked", "err", err)
		return 0
	}
	for _, key := range slices.Sorted(maps.Keys(index)) {
		e := index[key]
		known, has := s.look(key)
		if noted == maxHandedEntries || !hexSHA256.MatchString(key) || !hexSHA256.MatchString(e.SHA256) || has && !e.At.After(known.At) {
			continue
		}
		if _, whole := s.whole(e.SHA256); !whole {
			continue
		}
		if err := s.note(key, e); err != nil {
			s.cfg.Log.Warn("where a Wasm module is from cannot be noted: its source is asked", "from", e.From, "err", err)
			continue
		}
		noted++
	}
	return noted
}
