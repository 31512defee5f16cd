package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"

	"understudy.mesh/pkg/wasm/internal/frame"
)

// key names what a source is asked with: its place and its credential. So what one credential has opened serves only who has that one.
func (s *Store) key(p place, src Source) (string, auth.Credential, error) {
	name, credential := p.name, auth.EmptyCredential
	var err error
	switch p.kind {
	case inRegistry:
		credential, err = s.credential(src, p.image)
		name += "\x00" + p.image.String()
	case onServer:
		name = p.url.String()
	}
	if err != nil {
		return "", credential, err
	}
	secret, err := json.Marshal(credential)
	return hashOf([]byte("source\x00"+name+"\x00"), secret), credential, err
}

// is says whether an entry is of what is wanted: its module, or one of its manifests, has this hash.
func (e entry) is(sha256 string) bool {
	return sha256 == "" || e.SHA256 == sha256 || slices.Contains(e.Digests, sha256)
}

// pullOrder is what a pull needs besides the place.
type pullOrder struct {
	key        string
	credential auth.Credential
	known      entry // what the index has of the source
	phase      func(Phase)
}

// pull asks the place for the module, and keeps it. wait is how long a server wants to be left alone.
func (s *Store) pull(ctx context.Context, p place, o pullOrder) (m Module, wait time.Duration, err error) {
	select {
	case s.pulls <- struct{}{}:
		defer func() { <-s.pulls }()
	case <-ctx.Done():
		return m, 0, ctx.Err()
	}
	o.phase(Pulling)
	within, stop := context.WithTimeoutCause(ctx, s.timeouts.pull, fmt.Errorf("it was not done after %s", s.timeouts.pull))
	defer stop()
	within, cancel := context.WithCancelCause(within)
	defer cancel(nil)
	t, err := s.newTrip(cancel)
	if err != nil {
		return m, 0, err
	}
	defer t.done()
	began := time.Now()
	m, err = s.pullBy(within, t, p, o)
	m.Took.Resolve = time.Since(began) - m.Took.Verify
	if cause := context.Cause(within); err != nil && cause != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return m, time.Duration(t.retryAfter.Load()), err
}

func (s *Store) pullBy(ctx context.Context, t *trip, p place, o pullOrder) (Module, error) {
	f, err := s.find(ctx, t, p, o)
	if err != nil {
		return Module{}, err
	}
	e := entry{From: p.name, Digests: f.digests, ETag: f.etag, At: s.now()}
	m, err := s.obtain(ctx, p, f, o)
	if err != nil {
		return Module{}, err
	}
	e.SHA256, e.ABI = m.SHA256, m.ABI
	if n := len(f.digests); n > 0 {
		m.Digest = f.digests[n-1]
	}
	if !e.is(p.sha256) {
		return Module{}, &mismatchError{want: p.sha256, got: e}
	}
	for _, key := range []string{o.key, manifestKey(m.Digest)} {
		if key == "" {
			continue
		}
		if err := s.note(key, e); err != nil {
			return Module{}, err
		}
	}
	return m, nil
}

// manifestKey names what became of a manifest, whoever asks for it: only who may have the manifest knows that it is this one.
func manifestKey(digest string) string {
	if digest == "" {
		return ""
	}
	return hashOf([]byte("manifest\x00" + digest))
}

// find looks what there is.
func (s *Store) find(ctx context.Context, t *trip, p place, o pullOrder) (*fetched, error) {
	switch p.kind {
	case inRegistry:
		return t.image(ctx, p.image, o.credential)
	case inFile:
		return s.read(ctx, p.path)
	}
	etag := o.known.ETag
	if !o.known.is(p.sha256) || etag == "" {
		etag = ""
	} else if _, whole := s.whole(o.known.SHA256); !whole {
		etag = ""
	}
	resp, err := t.get(ctx, p.url, etag)
	if err != nil {
		return nil, err
	}
	f := &fetched{size: resp.ContentLength, etag: resp.Header.Get("ETag"), open: func(context.Context) (io.ReadCloser, error) { return resp.Body, nil }}
	if resp.StatusCode == http.StatusNotModified {
		f.open = nil // it is what the store has
		f.etag = etag
		return f, resp.Body.Close()
	}
	if f.size > s.cfg.MaxModule {
		return nil, errors.Join(&tooLargeError{"it has", s.cfg.MaxModule}, resp.Body.Close())
	}
	return f, nil
}

// obtain is the module of what was found: what the store has of the same manifest, or else what is fetched now.
func (s *Store) obtain(ctx context.Context, p place, f *fetched, o pullOrder) (Module, error) {
	if f.open == nil {
		m, missing := s.stored(o.known)
		if missing {
			return Module{}, errors.New("it has just gone from the store")
		}
		return m, nil
	}
	manifest := ""
	if n := len(f.digests); n > 0 {
		manifest = f.digests[n-1]
		if err := s.rejection(manifest); err != nil {
			return Module{}, err
		}
		if e, ok := s.look(manifestKey(manifest)); ok {
			if m, missing := s.stored(e); !missing {
				return m, nil
			}
		}
	}
	body, err := f.open(ctx)
	if err != nil {
		return Module{}, err
	}
	defer body.Close()
	m, err := s.save(body, func(string) error {
		if f.verify == nil {
			return nil
		}
		return f.verify()
	})
	if manifest != "" && isAbout(err) {
		s.reject(manifest, err)
	}
	if err == nil {
		s.cfg.Log.Info("a Wasm module is in the store", "from", p.name, "sha256", m.SHA256, "bytes", m.Size)
	}
	return m, err
}

// maxRejected bounds how many bad manifests are remembered.
const maxRejected = 100

func (s *Store) reject(manifest string, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rejected) >= maxRejected {
		clear(s.rejected)
	}
	s.rejected[manifest] = why
}

func (s *Store) rejection(manifest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rejected[manifest]
}

// mismatchError is a module that is not the one that is wanted.
type mismatchError struct {
	want string
	got  entry
}

func (e *mismatchError) Error() string {
	if n := len(e.got.Digests); n > 0 {
		return fmt.Sprintf("sha256 %s is wanted, and it is neither that of its manifest, %s, nor of its module, %s", e.want, e.got.Digests[n-1], e.got.SHA256)
	}
	return fmt.Sprintf("sha256 %s is wanted, and the module has %s", e.want, e.got.SHA256)
}

// isAbout says whether an error is of the module itself, not of the way to it.
func isAbout(err error) bool {
	return errors.As(err, new(*frame.InvalidError)) || errors.As(err, new(*refusedError)) || errors.As(err, new(*tooLargeError))
}
