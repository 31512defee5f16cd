package wasm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

const (
	// backoffFirst and backoffLast bound the pause before another attempt: anything from 0 to a limit that doubles, so that the pods of a
	// mesh do not ask their registry at one moment.
	backoffFirst = time.Second
	backoffLast  = 5 * time.Minute
	// backoffRefused is the first limit where only somebody's doing helps.
	backoffRefused = 30 * time.Second
	// lookEvery is how often a source that has failed is looked at for what lets it be tried at once. It is files that are looked at, which
	// may not be there yet, nor their directory; and only while something fails.
	lookEvery = time.Second
)

func randomly(limit time.Duration) time.Duration { return rand.N(limit) }

// backoff is the pause after so many failures before this one.
func backoff(err error, failures int, random func(time.Duration) time.Duration) time.Duration {
	limit := backoffFirst
	if refused(err) {
		limit = backoffRefused
	}
	for ; failures > 0 && limit < backoffLast; failures-- {
		limit *= 2
	}
	return random(min(limit, backoffLast))
}

// refused says whether it is no trouble of the moment: nobody may have the module, nobody has it, or it is not what it should be.
func refused(err error) bool {
	status, response := new(statusError), new(errcode.ErrorResponse)
	code := 0
	switch {
	case errors.As(err, &status):
		code = status.code
	case errors.As(err, &response):
		code = response.StatusCode
	}
	switch code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusGone:
		return true
	}
	if errors.Is(err, errdef.ErrNotFound) { // what oras makes of a registry's 404
		return true
	}
	return isAbout(err) || errors.As(err, new(*mismatchError)) || errors.As(err, new(*blockedError))
}

// sleep waits for a pause, the end of ctx, or a change, and says whether there was one.
func (s *Store) sleep(ctx context.Context, pause time.Duration, changed func() bool) bool {
	over := time.NewTimer(pause)
	defer over.Stop()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-over.C:
			return false
		case <-look.C:
			if changed() {
				return true
			}
		}
	}
}

// Surroundings changes whenever the files change by which a source can be had, or another module than before.
func (s *Store) Surroundings(src Source) string {
	p, err := s.place(src)
	if err != nil {
		return ""
	}
	return s.surroundings(p, src)
}

// surroundings is what files decide whether a source can be had, as they are now.
func (s *Store) surroundings(p place, src Source) string {
	files := []string{s.cfg.CAFile, s.secretPath(src.Secret), s.secretPath(src.SecretIfThere)}
	if s.cfg.DockerConfig != "" {
		files = append(files, filepath.Join(s.cfg.DockerConfig, "config.json"))
	}
	if p.kind == inFile {
		files = append(files, p.path)
	}
	var all strings.Builder
	for _, file := range files {
		if file == "" {
			continue
		}
		if info, err := os.Stat(file); err == nil { // which follows the links of a mounted Secret
			fmt.Fprintf(&all, "%d %d;", info.ModTime().UnixNano(), info.Size())
		} else {
			all.WriteString("none;")
		}
	}
	return all.String()
}

// flight is a pull of one source with one credential, of which there is one at a time. Who waits for it finds its module in the store.
type flight struct {
	turn    chan struct{}
	waiting int
}

// fly waits for the turn of a key, which the function ends that it returns.
func (s *Store) fly(ctx context.Context, key string) (land func(), err error) {
	s.mu.Lock()
	f := s.flights[key]
	if f == nil {
		f = &flight{turn: make(chan struct{}, 1)}
		s.flights[key] = f
	}
	f.waiting++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.waiting--; f.waiting == 0 {
			delete(s.flights, key)
		}
	}
	select {
	case f.turn <- struct{}{}:
		return func() {
			<-f.turn
			leave()
		}, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// scrubbedError shows an error without the queries of URLs, which may authorise who sends them.
type scrubbedError struct{ error }

var query = regexp.MustCompile(`\?[^\s"']+`)

func (e *scrubbedError) Error() string { return query.ReplaceAllString(e.error.Error(), "?...") }
func (e *scrubbedError) Unwrap() error { return e.error }
