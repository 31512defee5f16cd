package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// handed is what a store gives a successor.
func handed(t *testing.T, s *Store) (modules map[string]io.Reader, index []byte) {
	t.Helper()
	modules = map[string]io.Reader{}
	for hash, f := range s.ExportModules() {
		t.Cleanup(func() { f.Close() })
		modules[hash] = f
	}
	return modules, s.ExportIndex()
}

// inUse are stores with a module of a registry in use, which has gone by now, and the source of it.
func inUse(t *testing.T, e Envoy) (s *Store, src Source, hash string) {
	t.Helper()
	r := newRegistry(t, false)
	r.user = "user:word"
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	s = newStore(t, func(c *Config) { c.Envoy = e })
	src = Source{URL: r.host() + "/a:v1", DockerConfig: []byte(opens(r, "user:word")), Plugin: Plugin{Config: []byte(`{"name":"a"}`)}}
	m, err := resolve(t, s, src)
	if err != nil {
		t.Fatal(err)
	}
	if s.ExportIndex() != nil || len(s.ExportModules()) > 0 {
		t.Error("what nobody uses is handed over")
	}
	if err := s.Retain(m.SHA256); err != nil {
		t.Fatal(err)
	}
	r.Close()
	return s, src, m.SHA256
}

// TestHandedOver: a store that is empty has, of another one, the modules in use, for whoever may have them, without a registry and without a
// try in an Envoy of the same version; also when they have gone from the other one's directory.
func TestHandedOver(t *testing.T) {
	e := &fakeEnvoy{version: "1"}
	older, src, hash := inUse(t, e)
	if err := os.Remove(older.modulePath(hash)); err != nil {
		t.Fatal(err)
	}
	newer := newStore(t, func(c *Config) { c.Envoy = e })
	modules, index := handed(t, older)
	newer.Import(modules, index)
	if !newer.isHeld(hash) {
		t.Error("what came is not in use")
	}
	before := e.tries
	m, err := resolve(t, newer, src)
	if err != nil || m.SHA256 != hash || m.Path == older.modulePath(hash) || e.tries != before {
		t.Errorf("%+v, %v, tried %d times more", m, err, e.tries-before)
	}
	if data, err := os.ReadFile(m.Path); err != nil || sum(data) != hash {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	stranger := src
	stranger.DockerConfig, stranger.Policy = nil, Never
	if _, err := resolve(t, newer, stranger); err == nil {
		t.Error("who may not have it has it")
	}
	if err := newer.Retain(); err != nil || newer.isHeld(hash) {
		t.Errorf("it stays in use: %v", err)
	}
}

// TestHandedOverToTheSameStore: what is there is neither written again nor noted, and is in use by both.
func TestHandedOverToTheSameStore(t *testing.T) {
	older, _, hash := inUse(t, nil)
	newer := New(older.cfg)
	newer.step = func(step string) { t.Errorf("%s: something is written", step) }
	modules, index := handed(t, older)
	newer.Import(modules, index)
	if err := older.Retain(); err != nil || !newer.isHeld(hash) {
		t.Errorf("it is not in use: %v", err)
	}
}

// TestHandedOverBadly: what is not what it says, or comes too late, is left out, and nothing else.
func TestHandedOverBadly(t *testing.T) {
	older, src, hash := inUse(t, nil)
	modules, index := handed(t, older)
	var log bytes.Buffer
	newer := newStore(t, func(c *Config) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	modules[sum(sample(2))] = bytes.NewReader(sample(3))
	modules["../../escape"] = bytes.NewReader(sample(4))
	modules[sum([]byte("text"))] = strings.NewReader("text")
	newer.Import(modules, index)
	if m, err := resolve(t, newer, src); err != nil || m.SHA256 != hash {
		t.Errorf("%+v, %v", m, err)
	}
	if all, err := newer.List(); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	for _, want := range []string{"its bytes have the hash " + sum(sample(3)), "is no hash", `it begins with \"text\"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in the log: %s", want, log.String())
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newStore(t, nil).adopt(ctx, sum(sample(1)), bytes.NewReader(sample(1))); err == nil {
		t.Error("it has no end")
	}
}

// TestHandedOverIndex: the newer entry of two counts, and what is none is left out.
func TestHandedOverIndex(t *testing.T) {
	older, _, hash := inUse(t, nil)
	modules, data := handed(t, older)
	var index map[string]entry
	if err := json.Unmarshal(data, &index); err != nil || len(index) == 0 {
		t.Fatal(string(data), err)
	}
	newer := newStore(t, nil)
	newer.Import(modules, nil)
	for key, e := range index {
		later := e
		later.At, later.From = e.At.Add(time.Hour), "another"
		if err := newer.note(key, later); err != nil {
			t.Fatal(err)
		}
	}
	if n := newer.adoptIndex(data); n != 0 {
		t.Errorf("%d older entries are noted", n)
	}
	bad := maps.Clone(index)
	bad["../../escape"] = entry{SHA256: hash, At: time.Now()}
	bad[sum(sample(5))] = entry{SHA256: sum(sample(6)), At: time.Now()} // of no module
	bad[sum(sample(7))] = entry{SHA256: "none", At: time.Now()}
	data, err := json.Marshal(bad)
	if err != nil {
		t.Fatal(err)
	}
	if n := newer.adoptIndex(data); n != 0 {
		t.Errorf("%d bad entries are noted", n)
	}
	if found, err := filepath.Glob(filepath.Join(newer.cfg.Dir, "..", "*escape*")); err != nil || len(found) > 0 {
		t.Errorf("%v, %v", found, err)
	}
}

// FuzzImport: whatever comes, nothing is in the store under another hash than its own, and nothing beside it.
func FuzzImport(f *testing.F) {
	hash := sum(sample(1))
	f.Add(sample(1), hash, []byte(`{"`+hash+`":{"sha256":"`+hash+`","at":"2026-01-02T03:04:05Z"}}`))
	f.Add([]byte("\x00asm"), "x", []byte(`[]`))
	f.Fuzz(func(t *testing.T, module []byte, hash string, index []byte) {
		s := newStore(t, nil)
		s.Import(map[string]io.Reader{hash: bytes.NewReader(module)}, index)
		all, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if data, err := os.ReadFile(s.modulePath(m.SHA256)); err != nil || sum(data) != m.SHA256 {
				t.Errorf("%s: %d bytes, %v", m.SHA256, len(data), err)
			}
		}
		entries, err := os.ReadDir(filepath.Dir(s.cfg.Dir))
		if err != nil || len(entries) > 1 {
			t.Errorf("%v, %v", entries, err)
		}
	})
}
