package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// TestRefused: what is damaged, old or somebody else's is not used.
func TestRefused(t *testing.T) {
	node := &corev3.Node{Id: "a"}
	key := Key(node, "istiod:15012")
	path := filepath.Join(t.TempDir(), "f")
	s := New(path, 2*time.Hour)
	head := Head{Key: key, Names: []byte(`[]`)}
	resources := func(w io.Writer) error { _, err := io.WriteString(w, "resources"); return err }
	if _, err := s.Save(head, resources); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, tc := range map[string]struct {
		content []byte
		key     string
		at      time.Time
		words   string
	}{
		"as it was":         {whole, key, now, ""},
		"another address":   {whole, Key(node, "other:15012"), now, "of another proxy"},
		"another proxy":     {whole, Key(&corev3.Node{Id: "b"}, "istiod:15012"), now, "of another proxy"},
		"old":               {whole, key, now.Add(-2*time.Hour - time.Minute), "old, at most 2h0m0s"},
		"not that old":      {whole, key, now.Add(-2*time.Hour + time.Minute), ""},
		"of the future":     {whole, key, now.Add(time.Hour), "old, at most"},
		"a bit":             {append([]byte("?"), whole[1:]...), key, now, "damaged"},
		"cut off":           {whole[:len(whole)-1], key, now, "damaged"},
		"empty":             {nil, key, now, "damaged"},
		"only its checksum": {make([]byte, checksumSize), key, now, "damaged"},
	} {
		if err := os.WriteFile(path, tc.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Touch(tc.at); err != nil {
			t.Fatal(err)
		}
		got := ""
		_, err := s.Load(tc.key, now, func(names []byte, from io.Reader) error {
			b, err := io.ReadAll(from)
			got = string(names) + string(b)
			return err
		})
		if tc.words == "" && (err != nil || got != "[]resources") || tc.words != "" && (err == nil || !strings.Contains(err.Error(), tc.words) || got != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := New(path+"x", 0).Load(key, now, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// TestStoreFails: what cannot be written, or is too much, leaves the file as it was, and nothing beside it.
func TestStoreFails(t *testing.T) {
	dir := t.TempDir()
	s := New(filepath.Join(dir, "f"), 0)
	if _, err := s.Save(Head{}, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	fault := errors.New("no more")
	if _, err := s.Save(Head{}, func(io.Writer) error { return fault }); !errors.Is(err, fault) {
		t.Errorf("got %v", err)
	}
	part := make([]byte, maxStored/2)
	if _, err := s.Save(Head{}, func(w io.Writer) error {
		_, first := w.Write(part)
		_, second := w.Write(part)
		return errors.Join(first, second)
	}); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %v", err)
	}
	after, err := os.ReadFile(s.path)
	if entries, _ := os.ReadDir(dir); err != nil || !bytes.Equal(before, after) || len(entries) != 1 {
		t.Errorf("there are %v, %v", entries, err)
	}
	if _, err := New(filepath.Join(dir, "no", "such"), 0).Save(Head{}, nil); err == nil {
		t.Error("a directory that is not there")
	}
}

// TestOpen: the file is opened that was written last, and no other.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	s := New(path, 0)
	if _, err := s.Open(); err == nil {
		t.Error("there is no file")
	}
	begin, err := s.Save(Head{Key: "k"}, func(w io.Writer) error { _, err := io.WriteString(w, "resources"); return err })
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len("resources"))
	if _, err := f.ReadAt(got, begin); err != nil || string(got) != "resources" {
		t.Errorf("at %d: %q, %v", begin, got, err)
	}
	if _, err := New(path, 0).Save(Head{}, func(io.Writer) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if f, err := s.Open(); !errors.Is(err, errStored) {
		t.Errorf("the file of another one: %v, %v", f, err)
	}
}
