package wasm

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"oras.land/oras-go/v2/errdef"

	"understudy.mesh/pkg/wasm/internal/frame"
)

func TestSources(t *testing.T) {
	s := newStore(t, func(c *Config) {
		c.Mirrors = []Mirror{{"docker.io", "mirror.lan/hub"}, {"docker.io/library", "mirror.lan/official"}, {"r.example", "[::1]:5000"}}
	})
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, tc := range []struct {
		url          string
		policy       Policy
		name, image  string
		wantedPolicy Policy
	}{
		{"oci://a.example/b/c:v1", 0, "a.example/b/c:v1", "a.example/b/c:v1", DefaultPolicy},
		{"a.example:5000/b", 0, "a.example:5000/b", "a.example:5000/b:latest", Always},
		{"a.example/b:latest", IfNotPresent, "a.example/b:latest", "a.example/b:latest", IfNotPresent},
		{"a.example/b:v1@" + digest, Always, "a.example/b:v1@" + digest, "a.example/b@" + digest, IfNotPresent},
		{"a.example/b@" + digest, Never, "a.example/b@" + digest, "a.example/b@" + digest, Never},
		{"filter:v1", 0, "docker.io/library/filter:v1", "mirror.lan/official/filter:v1", DefaultPolicy},
		{"user/filter:v1", 0, "docker.io/user/filter:v1", "mirror.lan/hub/user/filter:v1", DefaultPolicy},
		{"index.docker.io/filter:v1", 0, "docker.io/library/filter:v1", "mirror.lan/official/filter:v1", DefaultPolicy},
		{"r.example/a:v1", 0, "r.example/a:v1", "[::1]:5000/a:v1", DefaultPolicy},
		{"r.example.com/a:v1", 0, "r.example.com/a:v1", "r.example.com/a:v1", DefaultPolicy},
		{"localhost/a:v1", 0, "localhost/a:v1", "localhost/a:v1", DefaultPolicy},
	} {
		p, err := s.place(Source{URL: tc.url, Policy: tc.policy})
		if err != nil || p.kind != inRegistry || p.name != tc.name || p.image.String() != tc.image || p.policy != tc.wantedPolicy {
			t.Errorf("%s: %+v, %v", tc.url, p, err)
		}
	}
	p, err := s.place(Source{URL: "https://a.example/b.wasm?token=secret#c"})
	if err != nil || p.kind != onServer || p.name != "https://a.example/b.wasm" || p.url.String() != "https://a.example/b.wasm?token=secret" {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = s.place(Source{URL: "file:///a/../b.wasm"})
	if err != nil || p.kind != inFile || p.path != "/b.wasm" || p.name != "file:///b.wasm" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestBadSources(t *testing.T) {
	s := newStore(t, func(c *Config) { c.Allow = []string{"a.example", "b.example/team/"} })
	for _, tc := range []struct {
		src  Source
		want string
	}{
		{Source{}, "want the name of an image"},
		{Source{URL: "oci://"}, "want the name of an image"},
		{Source{URL: "a.example/B"}, "want the name of an image"},
		{Source{URL: "a.example/b?hush"}, "want the name of an image"},
		{Source{URL: "a.example/b@sha256:1"}, "want the name of an image"},
		{Source{URL: "ftp://a.example/b"}, `the scheme "ftp"`},
		{Source{URL: "https://"}, "want a URL with a host"},
		{Source{URL: "https://a:hush@a.example/b"}, "credentials in a URL"},
		{Source{URL: "https://a.example/%zz?hush"}, "want a URL"},
		{Source{URL: "file://b.wasm"}, "want an absolute path"},
		{Source{URL: "a.example/b", SHA256: "abc"}, "want 64 hexadecimal digits"},
		{Source{URL: "a.example.com/b"}, "none of those that UNDERSTUDY_WASM_ALLOW lists: a.example, b.example/team/"},
		{Source{URL: "b.example/teammate/c"}, "UNDERSTUDY_WASM_ALLOW"},
		{Source{URL: "https://c.example/b"}, "UNDERSTUDY_WASM_ALLOW"},
	} {
		_, err := s.Resolve(t.Context(), tc.src) // not once: no waiting helps
		if err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%+v: %v", tc.src, err)
		}
	}
	for _, url := range []string{"a.example/b", "oci://a.example/b/c", "b.example/team/c", "https://a.example/b", "file:///b"} {
		if _, err := s.place(Source{URL: url}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestParseMirrors(t *testing.T) {
	got, err := ParseMirrors([]string{"docker.io=mirror.lan/hub/", "a.example/b/=c.example:5000"})
	if err != nil || !slices.Equal(got, []Mirror{{"docker.io", "mirror.lan/hub"}, {"a.example/b", "c.example:5000"}}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, pair := range []string{"", "a", "=b", "a=", "a=https://b"} {
		if _, err := ParseMirrors([]string{pair}); err == nil || !strings.Contains(err.Error(), "want from=to") {
			t.Errorf("%q: %v", pair, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	longest := func(d time.Duration) time.Duration { return d }
	denied := &scrubbedError{&statusError{code: 403}}
	for _, tc := range []struct {
		err      error
		failures int
		want     time.Duration
	}{
		{errors.New("no route"), 0, time.Second}, {errors.New("no route"), 1, 2 * time.Second}, {errors.New("no route"), 8, 256 * time.Second},
		{errors.New("no route"), 9, 5 * time.Minute}, {errors.New("no route"), 1000, 5 * time.Minute},
		{denied, 0, 30 * time.Second}, {denied, 3, 240 * time.Second}, {denied, 4, 5 * time.Minute},
		{frame.Invalid("x"), 0, 30 * time.Second}, {&mismatchError{}, 0, 30 * time.Second}, {&tooLargeError{}, 0, 30 * time.Second},
		{&statusError{code: 401}, 0, 30 * time.Second}, {&statusError{code: 404}, 0, 30 * time.Second},
		{fmt.Errorf("a/b:c: %w", errdef.ErrNotFound), 0, 30 * time.Second},
		{&statusError{code: 500}, 0, time.Second}, {&statusError{code: 429}, 0, time.Second},
	} {
		if got := backoff(tc.err, tc.failures, longest); got != tc.want {
			t.Errorf("%v, %d failures before: %v, want %v", tc.err, tc.failures, got, tc.want)
		}
	}
	for range 100 {
		if got := backoff(denied, 0, randomly); got < 0 || got >= 30*time.Second {
			t.Errorf("%v", got)
		}
	}
}

func TestNothingIsMadeBeforeTheFirstModule(t *testing.T) {
	s := newStore(t, nil)
	if _, err := resolve(t, s, Source{URL: "file:///none"}); err == nil {
		t.Error("no error")
	}
	if err := s.Retain(); err != nil {
		t.Error(err)
	}
	if n, err := s.purge(0); n > 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if found, _ := filepath.Glob(s.cfg.Dir); len(found) > 0 {
		t.Errorf("there is %q", found)
	}
}
