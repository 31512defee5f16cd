package security

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"understudy.mesh/tests/catest"
)

// write writes a file of a directory as most do: under another name, then renamed.
func write(t *testing.T, directory, name, content string) string {
	t.Helper()
	path := filepath.Join(directory, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

// pair is a certificate of a CA with its key.
func pair(t *testing.T, ca *catest.CA) (chain, key string) {
	t.Helper()
	c := issued(t, ca, workload, 0, time.Hour)
	return string(c.Chain), string(c.Key)
}

// TestMounted: a workload whose certificate is mounted asks no CA, and gets another one when the kubelet publishes it.
func TestMounted(t *testing.T) {
	ca := catest.New(t, "root")
	directory := t.TempDir()
	publish := func(version string) (chain string) {
		chain, key := pair(t, ca)
		if err := os.Mkdir(filepath.Join(directory, version), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{ChainFile: chain, KeyFile: key, RootFile: ca.Root()} {
			write(t, filepath.Join(directory, version), name, content)
		}
		if err := os.Symlink(version, filepath.Join(directory, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(directory, "..new"), filepath.Join(directory, "..data")); err != nil {
			t.Fatal(err)
		}
		return chain
	}
	first := publish("..1")
	for _, name := range []string{ChainFile, KeyFile, RootFile} {
		if err := os.Symlink("..data/"+name, filepath.Join(directory, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := config(ca.Serve())
	c.Mounted = []string{filepath.Join(directory, "missing"), directory}
	m := newManager(t, c)
	start(t, m)
	if s := await(t, m, Workload, "the mounted one", there); string(s.Chain) != first {
		t.Errorf("chain %q, want the mounted one", s.Chain)
	}
	if s := await(t, m, Roots, "the mounted root", there); string(s.Roots) != ca.Root() {
		t.Errorf("roots %q, want the mounted one", s.Roots)
	}
	second := publish("..2")
	await(t, m, Workload, "the second one", func(s Secret, _ error) bool { return string(s.Chain) == second })
	third := publish("..3")
	await(t, m, Workload, "the third one", func(s Secret, _ error) bool { return string(s.Chain) == third })
	if n := len(ca.Requests()); n != 0 {
		t.Errorf("%d requests to the CA, want none", n)
	}
	if l := m.leaf(); l == nil || l.issuer != "CN=root" {
		t.Errorf("metrics tell of %v", l)
	}
	if m.Export() != nil {
		t.Error("mounted files are handed over")
	}
}

// TestMountedRoot: mounted roots go before the CA's; the certificate is the CA's.
func TestMountedRoot(t *testing.T) {
	ca, other := catest.New(t, "root"), catest.New(t, "mounted")
	directory := t.TempDir()
	write(t, directory, RootFile, other.Root())
	c := config(ca.Serve())
	c.Mounted = []string{directory}
	m := newManager(t, c)
	start(t, m)
	await(t, m, Workload, "the CA's certificate", there)
	if s := await(t, m, Roots, "the mounted root", there); string(s.Roots) != other.Root() {
		t.Errorf("roots %q, want the mounted one", s.Roots)
	}
}

// TestNamedFiles: secrets whose names say where they are follow their files, by whatever way these are replaced.
func TestNamedFiles(t *testing.T) {
	ca, other := catest.New(t, "root"), catest.New(t, "other")
	directory := t.TempDir()
	m := newManager(t, config(nil))
	start(t, m)
	chain, key := pair(t, ca)
	name := certPrefix + filepath.Join(directory, "a.pem") + "~" + filepath.Join(directory, "a.key")
	if _, err := m.Get(name); err == nil || !strings.Contains(err.Error(), "a.pem: no such file") {
		t.Errorf("%v, want the missing file", err)
	}
	write(t, directory, "a.pem", chain)
	write(t, directory, "a.key", key)
	await(t, m, name, "the pair", func(s Secret, _ error) bool { return string(s.Chain) == chain && string(s.Key) == key })

	chain2, key2 := pair(t, ca)
	write(t, directory, "a.key", key2) // the certificate is still the one before
	marker := rootPrefix + write(t, directory, "roots.pem", ca.Root())
	if _, err := m.Get(marker); err != nil {
		t.Fatal(err)
	}
	write(t, directory, "roots.pem", other.Root())
	await(t, m, marker, "the other root", func(s Secret, _ error) bool { return string(s.Roots) == other.Root() })
	if s, err := m.Get(name); err != nil || string(s.Key) != key {
		t.Errorf("%v, %v; want the pair before, while certificate and key do not belong together", s, err)
	}
	write(t, directory, "a.pem", chain2)
	await(t, m, name, "the second pair", func(s Secret, _ error) bool { return string(s.Chain) == chain2 && string(s.Key) == key2 })
	if err := os.WriteFile(filepath.Join(directory, "roots.pem"), []byte(ca.Root()+other.Root()), 0o600); err != nil {
		t.Fatal(err)
	}
	await(t, m, marker, "both roots", func(s Secret, _ error) bool { return string(s.Roots) == ca.Root()+other.Root() })
}

// TestLinkedDirectory: a directory that is a link, which leads to another one from now on.
func TestLinkedDirectory(t *testing.T) {
	first, second := catest.New(t, "first"), catest.New(t, "second")
	directory := t.TempDir()
	for name, ca := range map[string]*catest.CA{"v1": first, "v2": second} {
		if err := os.Mkdir(filepath.Join(directory, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(directory, name), "roots.pem", ca.Root())
	}
	link := func(to string) {
		if err := os.Symlink(to, filepath.Join(directory, "new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(directory, "new"), filepath.Join(directory, "latest")); err != nil {
			t.Fatal(err)
		}
	}
	link("v1")
	m := newManager(t, config(nil))
	start(t, m)
	name := rootPrefix + filepath.Join(directory, "latest", "roots.pem")
	await(t, m, name, "the first", func(s Secret, _ error) bool { return string(s.Roots) == first.Root() })
	link("v2")
	await(t, m, name, "the second", func(s Secret, _ error) bool { return string(s.Roots) == second.Root() })
	write(t, filepath.Join(directory, "v2"), "roots.pem", first.Root())
	await(t, m, name, "the second as it was replaced", func(s Secret, _ error) bool { return string(s.Roots) == first.Root() })
}

// TestNoWatch: where the kernel has no watch to give, files are read now and then, and that is said once.
func TestNoWatch(t *testing.T) {
	first, second := catest.New(t, "first"), catest.New(t, "second")
	path := write(t, t.TempDir(), "roots.pem", first.Root())
	synctest.Test(t, func(t *testing.T) {
		var log syncBuffer
		f := newFiles(slog.New(slog.NewTextHandler(&log, nil)), 0, func() {})
		w := &watch{files: f, open: func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") }}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.run(ctx); close(done) }()
		defer func() { cancel(); <-done }()
		name := rootPrefix + path
		if _, err := f.find(name); err != nil {
			t.Fatal(err)
		}
		pass(time.Second)
		write(t, filepath.Dir(path), "roots.pem", second.Root())
		pass(3 * rescanEvery)
		if s, err := f.find(name); err != nil || string(s.Roots) != second.Root() {
			t.Errorf("%q, %v; want what the file has now", s.Roots, err)
		}
		if said := log.String(); strings.Count(said, "too many open files") != 1 || f.unseen.Load() != 1 {
			t.Errorf("log %q, counted %d; want it once", said, f.unseen.Load())
		}
	})
}

// TestInvalidFiles: an invalid state is said after ten seconds, once, and the secret stays.
func TestInvalidFiles(t *testing.T) {
	var log syncBuffer
	ca := catest.New(t, "root")
	directory := t.TempDir()
	path := write(t, directory, "roots.pem", ca.Root())
	f := newFiles(slog.New(slog.NewTextHandler(&log, nil)), 0, func() {})
	name, now := rootPrefix+path, time.Now()
	if _, err := f.find(name); err != nil {
		t.Fatal(err)
	}
	write(t, directory, "roots.pem", "PRIVATE")
	for _, at := range []time.Duration{0, 9 * time.Second} {
		if !f.refresh(now.Add(at)) || strings.Contains(log.String(), "invalid state") {
			t.Errorf("after %v: %q", at, log.String())
		}
	}
	for _, at := range []time.Duration{10 * time.Second, 20 * time.Second} {
		if f.refresh(now.Add(at)) {
			t.Error("files that stay invalid are read every second for ever")
		}
		if said := log.String(); strings.Count(said, "invalid state") != 1 || !strings.Contains(said, "no certificate in PEM") || strings.Contains(said, "PRIVATE") {
			t.Errorf("after %v: %q", at, said)
		}
	}
	if s, err := f.find(name); err != nil || string(s.Roots) != ca.Root() || f.invalid.Load() != 1 {
		t.Errorf("%v, %v, counted %d; want what was there", s, err, f.invalid.Load())
	}
	write(t, directory, "roots.pem", ca.Root())
	if f.refresh(now.Add(time.Minute)) {
		t.Error("still invalid")
	}
}

// TestBadFiles: what names and files may be that are of no use. None blocks, none is used, each is said.
func TestBadFiles(t *testing.T) {
	directory := t.TempDir()
	fifo := filepath.Join(directory, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	large := write(t, directory, "large", strings.Repeat("x", maxFile+1))
	empty := write(t, directory, "empty", "")
	half := write(t, directory, "half", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	m := newManager(t, config(nil))
	for name, want := range map[string]string{
		"kubernetes://secret":           "neither default, ROOTCA, file-cert:<chain>~<key> nor file-root:<roots>",
		"":                              "neither default",
		"file-cert:":                    "neither default",
		"file-cert:a":                   "neither default",
		"file-cert:a~":                  "neither default",
		"file-cert:~b":                  "neither default",
		"file-cert:a~b~c":               "neither default",
		"file-root:":                    "neither default",
		rootPrefix + fifo:               "is no regular file",
		rootPrefix + directory:          "is no regular file",
		rootPrefix + large:              "more than 4194304 bytes",
		rootPrefix + empty:              "no certificate in PEM",
		rootPrefix + half:               "half: x509",
		certPrefix + empty + "~" + half: "failed to find any PEM data",
	} {
		if s, err := m.Get(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v; want %q", name, s, err, want)
		}
	}
	if _, err := m.Get(Workload); err == nil || !strings.Contains(err.Error(), "set CA_ADDR or discoveryAddress") {
		t.Errorf("%v, want that there is no CA", err)
	}
}

// TestOneBadRoot: one bad root of many does no harm to the others.
func TestOneBadRoot(t *testing.T) {
	ca := catest.New(t, "root")
	m := newManager(t, config(nil))
	path := write(t, t.TempDir(), "roots.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"+ca.Root())
	if s, err := m.Get(rootPrefix + path); err != nil || string(s.Roots) != ca.Root() {
		t.Errorf("%v, %v; want the good one", s, err)
	}
}

// TestManyFiles: names come from outside, so there is an end to them.
func TestManyFiles(t *testing.T) {
	m := newManager(t, config(nil))
	var err error
	for i := range maxNames + 1 {
		_, err = m.Get(fmt.Sprintf("file-root:/nobody/%d", i))
	}
	if err == nil || !strings.Contains(err.Error(), "more are not watched") {
		t.Errorf("%v, want that there are too many", err)
	}
}

// TestRevoked: what is revoked goes with the roots of the mesh, as it is and comes.
func TestRevoked(t *testing.T) {
	ca := catest.New(t, "root")
	directory := t.TempDir()
	c := config(ca.Serve())
	c.CRL = filepath.Join(directory, "ca-crl.pem")
	m := newManager(t, c)
	start(t, m)
	if s := await(t, m, Roots, "roots", there); s.CRL != nil {
		t.Errorf("a list %q, want none yet", s.CRL)
	}
	list := revocations(t)
	write(t, directory, "ca-crl.pem", list)
	await(t, m, Roots, "the list", func(s Secret, _ error) bool { return string(s.CRL) == list })
	write(t, directory, "ca-crl.pem", strings.Replace(list, "M", "N", 3))
	other := rootPrefix + write(t, directory, "roots.pem", ca.Root())
	if s, err := m.Get(other); err != nil || s.CRL != nil {
		t.Errorf("%q, %v; want no list for other roots", s.CRL, err)
	}
	write(t, directory, "roots.pem", catest.New(t, "other").Root())
	await(t, m, other, "other roots", func(s Secret, _ error) bool { return string(s.Roots) != ca.Root() })
	if s, _ := m.Get(Roots); string(s.CRL) != list {
		t.Errorf("a list %q, want the one before: this one is invalid", s.CRL)
	}
	if err := os.Remove(c.CRL); err != nil {
		t.Fatal(err)
	}
	await(t, m, Roots, "no list", func(s Secret, _ error) bool { return s.CRL == nil })
}

// revocations is a list of no revoked certificate.
func revocations(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	issuer := &x509.Certificate{KeyUsage: x509.KeyUsageCRLSign, SubjectKeyId: []byte{1}, RawSubject: []byte{0x30, 0}}
	der, err := x509.CreateRevocationList(rand.Reader, template, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := pem.Encode(&out, &pem.Block{Type: "X509 CRL", Bytes: der}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
