package security

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"understudy.mesh/pkg/security/credential"
)

const (
	// maxFile bounds a file, in bytes: the bundle of an operating system has a quarter of a MiB, a list of revoked certificates more.
	maxFile = 4 << 20
	// maxNames bounds how many secrets may be asked for that are in files: those of a mesh's configuration that concern one pod.
	maxNames = 256
	// defaultDebounce is how long after a first change files are read (Istio's): they are changed one by one.
	defaultDebounce = 100 * time.Millisecond
	// settleTime is how long files may be in an invalid state before that is said: the key is written, the certificate not yet.
	// Until then they are read every retryEvery, afterwards as all others.
	settleTime = 10 * time.Second
	retryEvery = time.Second

	// Names of files in a directory (Istio's).
	ChainFile, KeyFile, RootFile = "cert-chain.pem", "key.pem", "root-cert.pem"
	// crlName is the list of revoked certificates, which is no secret of its own.
	crlName = "crl of " + Roots
)

// systemRoots are where operating systems have their roots: of Debian, Fedora, openSUSE, OpenELEC, CentOS and Alpine.
func systemRoots() []string {
	return []string{
		"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
		"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
	}
}

// files owns the secrets that are in files: it reads them when they change, and keeps what was good until something else is.
type files struct {
	log      *slog.Logger
	debounce time.Duration
	changed  func()        // called when get may say otherwise
	asked    chan struct{} // there is another file to watch
	invalid  atomic.Uint64 // times that files were found in an invalid state for good
	unseen   atomic.Uint64 // times that no watch could be had

	mu      sync.Mutex
	secrets map[string]*fileSecret // by name
}

// fileSecret is one secret with its files.
type fileSecret struct {
	paths []string
	read  func() (Secret, error)

	good   Secret    // the last one that was valid
	leaf   *leaf     // of good; nil: it has none
	usable bool      // there is a good one
	err    error     // why the files have none now
	since  time.Time // of err
	said   bool      // err was logged
}

// leaf is what metrics tell of a certificate.
type leaf struct {
	since    time.Time // it was obtained, or one of a file begins
	notAfter time.Time
	issuer   string
}

func newFiles(log *slog.Logger, debounce time.Duration, changed func()) *files {
	if debounce == 0 {
		debounce = defaultDebounce
	}
	return &files{log: log, debounce: debounce, changed: changed, asked: make(chan struct{}, 1), secrets: make(map[string]*fileSecret)}
}

// mount has the workload's secrets read from the first of some directories that has them.
func (f *files) mount(directories []string, now time.Time) {
	for _, directory := range directories {
		chain, key, root := filepath.Join(directory, ChainFile), filepath.Join(directory, KeyFile), filepath.Join(directory, RootFile)
		if exists(chain) && exists(key) {
			f.add(Workload, pairSecret(chain, key), now)
		}
		if exists(root) {
			f.add(Roots, rootSecret(root), now)
		}
	}
}

// revoked has the list of revoked certificates read from a file, which may come and go if its directory is there.
func (f *files) revoked(path string, now time.Time) {
	if path != "" && exists(filepath.Dir(path)) {
		f.add(crlName, crlSecret(path), now)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// same says whether two paths are one directory. The output of an agent is not to be taken for its input: it would never be renewed.
func same(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// add reads a secret, unless there is one of the name, and has it watched.
func (f *files) add(name string, s *fileSecret, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.secrets[name] != nil {
		return
	}
	f.secrets[name] = s
	s.load(now)
	select {
	case f.asked <- struct{}{}:
	default:
	}
}

// has says whether a secret is in files.
func (f *files) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.secrets[name] != nil
}

// get returns a secret, or why its files have none.
func (f *files) get(name string) (Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.secrets[name]
	if s == nil {
		return Secret{}, fmt.Errorf("a secret %q, which is none that this agent has", name)
	}
	if !s.usable {
		return Secret{}, s.err
	}
	return s.good, nil
}

// leafOf is what metrics tell of a secret's certificate; nil: it has none.
func (f *files) leafOf(name string) *leaf {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.secrets[name]; s != nil {
		return s.leaf
	}
	return nil
}

// find is get for a name that says where the files are. The first time, they are read, and watched from then on.
func (f *files) find(name string) (Secret, error) {
	if !f.has(name) {
		s, err := named(name)
		if err != nil {
			return Secret{}, err
		}
		if f.count() >= maxNames {
			return Secret{}, fmt.Errorf("secret %q: %d others are in files, more are not watched", name, maxNames)
		}
		f.add(name, s, time.Now())
	}
	return f.get(name)
}

func (f *files) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.secrets)
}

// named is the secret of a name as istiod's configuration has it.
func named(name string) (*fileSecret, error) {
	if name == systemRoot {
		for _, path := range systemRoots() {
			if exists(path) {
				return rootSecret(path), nil
			}
		}
		return nil, fmt.Errorf("secret %q: this machine has none of %s", name, strings.Join(systemRoots(), ", "))
	}
	if path, ok := strings.CutPrefix(name, rootPrefix); ok && path != "" {
		return rootSecret(path), nil
	}
	if paths, ok := strings.CutPrefix(name, certPrefix); ok {
		if chain, key, ok := strings.Cut(paths, "~"); ok && chain != "" && key != "" && !strings.Contains(key, "~") {
			return pairSecret(chain, key), nil
		}
	}
	return nil, fmt.Errorf("a secret %q: neither %s, %s, %s<chain>~<key> nor %s<roots>", name, Workload, Roots, certPrefix, rootPrefix)
}

// pairSecret is a certificate with its key.
func pairSecret(chain, key string) *fileSecret {
	s := &fileSecret{paths: []string{chain, key}}
	s.read = func() (Secret, error) {
		certificate, err := readFile(chain)
		if err != nil {
			return Secret{}, err
		}
		private, err := readFile(key)
		if err != nil {
			return Secret{}, err
		}
		parsed, err := credential.Pair(certificate, private)
		if err != nil {
			return Secret{}, fmt.Errorf("%s with %s: %w", chain, key, err)
		}
		s.leaf = &leaf{parsed.NotBefore, parsed.NotAfter, parsed.Issuer.String()}
		return Secret{Chain: certificate, Key: private}, nil
	}
	return s
}

// rootSecret is roots, of which those are left out that cannot be read.
func rootSecret(path string) *fileSecret {
	return &fileSecret{paths: []string{path}, read: func() (Secret, error) {
		data, err := readFile(path)
		if err != nil {
			return Secret{}, err
		}
		roots, err := credential.Roots(data)
		if len(roots) == 0 {
			return Secret{}, fmt.Errorf("%s: %w", path, err)
		}
		return Secret{Roots: []byte(strings.Join(roots, ""))}, nil
	}}
}

// crlSecret is a list of revoked certificates; none if there is no file.
func crlSecret(path string) *fileSecret {
	return &fileSecret{paths: []string{path}, read: func() (Secret, error) {
		data, err := readFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return Secret{}, nil
		}
		if err != nil {
			return Secret{}, err
		}
		for rest := data; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if _, err := x509.ParseRevocationList(block.Bytes); err != nil {
				return Secret{}, fmt.Errorf("%s: a block in PEM that is no list of revoked certificates: %w", path, err)
			}
		}
		return Secret{CRL: data}, nil
	}}
}

// readFile reads a file that somebody else may write, or may have put something else in place of.
func readFile(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO's does not wait for who writes it, open(2)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, nil
}

// load reads the files, and says whether what is to be said of them differs.
func (s *fileSecret) load(now time.Time) (changed bool) {
	before := s.leaf
	secret, err := s.read()
	if err != nil {
		s.leaf = before
		if s.err == nil {
			s.since = now
		}
		changed = !s.usable && (s.err == nil || s.err.Error() != err.Error())
		s.err = err
		return changed
	}
	changed = !s.usable || !secret.Equal(s.good)
	s.good, s.usable, s.err, s.said = secret, true, nil, false
	return changed
}

// refresh reads all files again, and says whether some are in an invalid state that may pass by itself.
func (f *files) refresh(now time.Time) (unsettled bool) {
	f.mu.Lock()
	changed := false
	for name, s := range f.secrets {
		if s.load(now) {
			changed = true
			if s.err == nil {
				f.log.Info("a secret in files has changed", "name", name)
			}
		}
		if s.err == nil || s.said {
			continue
		}
		if s.said = now.Sub(s.since) >= settleTime; s.said {
			f.invalid.Add(1)
			f.log.Error("files of a secret are in an invalid state: the one before stays in force, if there was one", "name", name, "err", s.err)
		}
		unsettled = unsettled || !s.said
	}
	f.mu.Unlock()
	if changed {
		f.changed()
	}
	return unsettled
}

// run reads files when they change, until ctx ends.
func (f *files) run(ctx context.Context) {
	w := &watch{files: f, open: fsnotify.NewWatcher}
	defer w.close()
	w.run(ctx)
}
