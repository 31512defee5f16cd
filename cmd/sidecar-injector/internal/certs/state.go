package certs

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"time"
)

// The keys of the Secret in which State is kept.
const (
	keyCurrentCert, keyCurrentKey = "ca.crt", "ca.key"
	keyNextCert, keyNextKey       = "next.crt", "next.key"
	keyOldCerts, keyOldUntil      = "old.crt", "old-until"
)

// Lives is how long things are valid.
type Lives struct {
	// CA is an authority's; the next one is made when a third of it is left.
	CA time.Duration
	// Leaf is that of a replica's certificate, which is made anew at half of it.
	Leaf time.Duration
}

// State is who signs, who will, and whom the API server trusts besides. All replicas have the same, from a Secret.
type State struct {
	current, next authority
	old           []*x509.Certificate
	oldUntil      time.Time
}

// Parse reads a state out of the data of its Secret. No data is no authority.
func Parse(data map[string][]byte) (s State, err error) {
	if s.current, err = parseAuthority(data[keyCurrentCert], data[keyCurrentKey]); err != nil {
		return State{}, fmt.Errorf("key %s: %w", keyCurrentCert, err)
	}
	if s.next, err = parseAuthority(data[keyNextCert], data[keyNextKey]); err != nil {
		return State{}, fmt.Errorf("key %s: %w", keyNextCert, err)
	}
	if s.old, err = parseCertificates(data[keyOldCerts]); err != nil {
		return State{}, fmt.Errorf("key %s: %w", keyOldCerts, err)
	}
	if len(s.old) == 0 {
		return s, nil
	}
	if s.oldUntil, err = time.Parse(time.RFC3339, string(data[keyOldUntil])); err != nil {
		return State{}, fmt.Errorf("key %s: %w", keyOldUntil, err)
	}
	return s, nil
}

// Data is the state as its Secret keeps it.
func (s State) Data() (map[string][]byte, error) {
	data := make(map[string][]byte)
	for _, a := range []struct {
		authority
		cert, key string
	}{{s.current, keyCurrentCert, keyCurrentKey}, {s.next, keyNextCert, keyNextKey}} {
		if a.IsZero() {
			continue
		}
		key, err := a.keyPEM()
		if err != nil {
			return nil, err
		}
		data[a.cert], data[a.key] = certPEM(a.authority.cert), key
	}
	if len(s.old) > 0 {
		for _, c := range s.old {
			data[keyOldCerts] = append(data[keyOldCerts], certPEM(c)...)
		}
		data[keyOldUntil] = []byte(s.oldUntil.UTC().Format(time.RFC3339))
	}
	return data, nil
}

// IsZero reports whether there is no authority that signs.
func (s State) IsZero() bool { return s.current.IsZero() }

// Waiting reports whether there is a next authority that signs as soon as the API server is known to trust it.
func (s State) Waiting() bool { return !s.next.IsZero() }

// Bundle is whom the API server has to trust.
func (s State) Bundle() []byte {
	var bundle []byte
	for _, a := range []authority{s.current, s.next} {
		if !a.IsZero() {
			bundle = append(bundle, certPEM(a.cert)...)
		}
	}
	for _, c := range s.old {
		bundle = append(bundle, certPEM(c)...)
	}
	return bundle
}

// Trusts reports whether a bundle has the next authority.
func (s State) Trusts(bundle []byte) bool {
	return !s.next.IsZero() && bytes.Contains(bundle, certPEM(s.next.cert))
}

// Step is the state that follows at a time, and what has happened, in words; "" is nothing. trusted: the API server trusts
// the next authority.
//
// An authority is in the bundle first, signs when the API server is known to have that bundle, and stays in it for a leaf's life
// after another one signs. Only if there is none that can sign now, a new one signs at once: no other way is left.
func (s State) Step(now time.Time, lives Lives, trusted bool) (State, string, error) {
	switch {
	case !s.current.validAt(now):
		if s.next.validAt(now) {
			return s.promoted(now, lives), "the authority has ended: the next one signs at once", nil
		}
		fresh, err := newAuthority(now, lives.CA)
		if err != nil {
			return s, "", err
		}
		what := "the first authority is made"
		if !s.current.IsZero() {
			what = "the authority is not valid now: a new one signs at once"
		}
		s.next = fresh
		return s.promoted(now, lives), what, nil
	case !s.next.IsZero() && !s.next.validAt(now):
		s.next = authority{}
		return s, "the next authority is not valid now and goes", nil
	case s.next.IsZero() && now.After(s.current.cert.NotAfter.Add(-lives.CA/3)):
		fresh, err := newAuthority(now, lives.CA)
		if err != nil {
			return s, "", err
		}
		s.next = fresh
		return s, "the next authority is made", nil
	case trusted && !s.next.IsZero():
		return s.promoted(now, lives), "the next authority signs", nil
	// The end may also be far off because the clock was ahead when it was written.
	case len(s.old) > 0 && (!now.Before(s.oldUntil) || s.oldUntil.After(now.Add(lives.Leaf))):
		s.old, s.oldUntil = nil, time.Time{}
		return s, "the old authority goes", nil
	}
	return s, "", nil
}

// promoted is the state in which the next authority signs.
func (s State) promoted(now time.Time, lives Lives) State {
	// Those from before stay a leaf's life as well: their end may be near, or not have come.
	old := slices.DeleteFunc(slices.Clone(s.old), func(c *x509.Certificate) bool { return !validAt(c, now) })
	if s.current.validAt(now) {
		old = append([]*x509.Certificate{s.current.cert}, old...)
	}
	s.current, s.next, s.old, s.oldUntil = s.next, authority{}, old, now.Add(lives.Leaf)
	if len(old) == 0 {
		s.oldUntil = time.Time{}
	}
	return s
}
