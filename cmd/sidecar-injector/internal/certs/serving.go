package certs

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Serving is the certificate that a replica serves with. It is safe for concurrent use.
type Serving struct {
	mu     sync.Mutex
	cert   *tls.Certificate
	signer authority
	read   [2][]byte // the files that cert was read of
}

// GetCertificate is a tls.Config's.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert == nil {
		return nil, errors.New("the webhook has no certificate yet")
	}
	return s.cert, nil
}

// Check is an error unless the certificate is valid at a time.
func (s *Serving) Check(now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.cert == nil:
		return errors.New("the webhook has no certificate yet")
	case !validAt(s.cert.Leaf, now):
		return fmt.Errorf("the webhook's certificate is valid from %s to %s, and it is %s", s.cert.Leaf.NotBefore.Format(time.RFC3339),
			s.cert.Leaf.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// Sign makes a new certificate if the one that there is was signed by another authority, is past half of its life, or is
// not valid now. It reports whether it did.
func (s *Serving) Sign(state State, names []string, now time.Time, lives Lives) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !state.current.validAt(now) {
		return false, errors.New("no authority can sign the webhook's certificate now")
	}
	if s.cert != nil && s.signer.same(state.current) && validAt(s.cert.Leaf, now) && now.Before(s.cert.Leaf.NotAfter.Add(-lives.Leaf/2)) {
		return false, nil
	}
	cert, err := state.current.leaf(names, now, lives.Leaf)
	if err != nil {
		return false, err
	}
	s.cert, s.signer = cert, state.current
	return true, nil
}

// Load reads the certificate from files, if they have changed. It reports whether they had. What cannot be used leaves the
// certificate that there is.
func (s *Serving) Load(certFile, keyFile string) (bool, error) {
	var read [2][]byte
	for i, name := range []string{certFile, keyFile} {
		text, err := os.ReadFile(name)
		if err != nil {
			return false, fmt.Errorf("read the webhook's certificate: %w", err)
		}
		read[i] = text
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cert != nil && bytes.Equal(read[0], s.read[0]) && bytes.Equal(read[1], s.read[1]) {
		return false, nil
	}
	cert, err := tls.X509KeyPair(read[0], read[1])
	if err != nil {
		return false, fmt.Errorf("read the webhook's certificate from %s and %s: %w", certFile, keyFile, err)
	}
	s.cert, s.read = &cert, read
	return true, nil
}
