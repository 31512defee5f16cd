package wasm

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"

	"oras.land/oras-go/v2/registry/remote/errcode"
)

// Stats are what a store has, and what has been asked of it since it was made.
type Stats struct {
	Modules int
	Bytes   int64
	// Hits and Misses are sources whose module was there, or had to be asked for.
	Hits, Misses uint64
	// Fetches are by what became of them: success, checksum_mismatch, manifest_failure (a registry or server refuses), or download_failure.
	Fetches map[string]uint64
	Retries uint64
}

// Results of a fetch: Istio's names.
const (
	fetchSuccess  = "success"
	fetchMismatch = "checksum_mismatch"
	fetchRefused  = "manifest_failure"
	fetchFailure  = "download_failure"
)

// Stats counts.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	out := s.counts
	out.Fetches = maps.Clone(s.counts.Fetches)
	s.mu.Unlock()
	files, _ := os.ReadDir(filepath.Join(s.cfg.Dir, modulesDir)) // it may not have been made yet
	for _, file := range files {
		if info, err := file.Info(); err == nil && isModule(file.Name()) != "" {
			out.Modules++
			out.Bytes += info.Size()
		}
	}
	return out
}

// fetched counts a fetch.
func (s *Store) fetched(err error) {
	result := fetchFailure
	switch response := new(errcode.ErrorResponse); {
	case err == nil:
		result = fetchSuccess
	case errors.As(err, new(*mismatchError)):
		result = fetchMismatch
	case errors.As(err, &response) && response.StatusCode != http.StatusTooManyRequests, errors.As(err, new(*statusError)):
		result = fetchRefused
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Fetches[result]++
}

func (s *Store) looked(hit bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hit {
		s.counts.Hits++
	} else {
		s.counts.Misses++
	}
}

func (s *Store) retried() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Retries++
}
