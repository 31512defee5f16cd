package wasm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// timeouts is how long each part of a pull may take.
type timeouts struct {
	connect time.Duration // a connection, and its TLS: what takes longer is on no way that serves
	header  time.Duration // until the first byte of an answer: Istio's WASM_HTTP_REQUEST_TIMEOUT is 15 s
	silence time.Duration // without a byte: a download that has stopped without an end
	pull    time.Duration // a pull as a whole: 256 MiB at a slow 1 MiB/s
}

var usualTimeouts = timeouts{connect: 5 * time.Second, header: 15 * time.Second, silence: 30 * time.Second, pull: 5 * time.Minute}

const (
	// maxRedirects is that of net/http.
	maxRedirects = 10
	// maxWait bounds what a server may ask for by Retry-After.
	maxWait = time.Hour
)

// neverDialed are addresses behind which no registry is, but a cloud's credentials: link-local ones with most clouds' metadata, and the
// metadata servers of Alibaba Cloud, AWS by IPv6, Google by IPv6, Oracle and Azure.
var neverDialed = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("100.100.100.200/32"), netip.MustParsePrefix("fd00:ec2::/32"), netip.MustParsePrefix("fd20:ce::254/128"),
	netip.MustParsePrefix("192.0.0.192/32"), netip.MustParsePrefix("168.63.129.16/32"),
}

// nat64 is the prefix that stands for IPv4 where a node has only IPv6 (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// trip is one pull's way to servers: whom it may reach, and what they said.
type trip struct {
	store  *Store
	strict *http.Transport
	lax    *http.Transport // for registries whose certificate nobody checks
	cancel context.CancelCauseFunc
	// retryAfter is the longest wait that a server asked for, in nanoseconds.
	retryAfter atomic.Int64
}

// newTrip makes connections that end with done.
func (s *Store) newTrip(cancel context.CancelCauseFunc) (*trip, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	t := &trip{store: s, cancel: cancel}
	transport := func(insecure bool) *http.Transport {
		config := &tls.Config{RootCAs: roots, InsecureSkipVerify: insecure} //nolint:gosec // asked for by WASM_INSECURE_REGISTRIES
		s.cfg.Compliance.Restrict(config)
		dialer := &net.Dialer{Timeout: s.timeouts.connect, Control: s.refuseAddress}
		return &http.Transport{
			DialContext: dialer.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: s.timeouts.connect, ForceAttemptHTTP2: true,
			ResponseHeaderTimeout: s.timeouts.header, DisableCompression: true, MaxResponseHeaderBytes: 1 << 20,
		}
	}
	t.strict, t.lax = transport(false), transport(true)
	return t, nil
}

// roots are the system's, and those of Config.CAFile.
func (s *Store) roots() (*x509.CertPool, error) {
	if s.cfg.CAFile == "" {
		return nil, nil // the system's
	}
	pem, err := os.ReadFile(s.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("UNDERSTUDY_WASM_CA_FILE: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("UNDERSTUDY_WASM_CA_FILE: %s: want certificates in PEM", s.cfg.CAFile)
	}
	return roots, nil
}

// done closes the connections.
func (t *trip) done() {
	t.strict.CloseIdleConnections()
	t.lax.CloseIdleConnections()
}

func (t *trip) client() *http.Client {
	return &http.Client{Transport: t, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if len(via) >= maxRedirects {
			return fmt.Errorf("stopped after %d redirects", maxRedirects)
		}
		if last := via[len(via)-1]; last.URL.Scheme == "https" && req.URL.Scheme == "http" && !t.store.plainAllowed(req.URL.Host) {
			return fmt.Errorf("%s redirects to plain HTTP at %s: not followed", last.URL.Host, req.URL.Host)
		}
		return nil
	}}
}

// RoundTrip sends one request of a pull, redirects included.
func (t *trip) RoundTrip(req *http.Request) (*http.Response, error) {
	secret := req.Header.Get("Authorization") != "" || req.Body != nil // a body has what a token is asked for with
	if secret && req.URL.Scheme == "http" && !t.store.plainAllowed(req.URL.Host) {
		return nil, fmt.Errorf("no credentials go to %s over plain HTTP: serve it with TLS, or list it in WASM_INSECURE_REGISTRIES", req.URL.Host)
	}
	if secret && leftHost(req) {
		req = req.Clone(req.Context())
		req.Header.Del("Authorization")
	}
	transport := t.strict
	if t.store.insecure(req.URL.Host) {
		transport = t.lax
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		t.noteRetry(resp.Header.Get("Retry-After"))
	}
	resp.Body = newSilence(resp.Body, t.store.timeouts.silence, t.cancel)
	return resp, nil
}

// leftHost says whether a redirect has led to another host than the one that was asked first.
func leftHost(req *http.Request) bool {
	first := req
	for first.Response != nil && first.Response.Request != nil {
		first = first.Response.Request
	}
	return first.URL.Host != req.URL.Host || first.URL.Scheme != req.URL.Scheme
}

// noteRetry reads Retry-After: seconds, or a date.
func (t *trip) noteRetry(text string) {
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(t.store.now())
	}
	if wait = min(wait, maxWait); int64(wait) > t.retryAfter.Load() {
		t.retryAfter.Store(int64(wait))
	}
}

// refuseAddress is asked for each connection, when the name was resolved: no name can be changed after that.
func (s *Store) refuseAddress(_, address string, _ syscall.RawConn) error {
	where, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	addr := where.Addr().Unmap().WithZone("")
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, list := range [][]netip.Prefix{neverDialed, s.cfg.Blocked} {
		for _, p := range list {
			if p.Contains(addr) {
				return &blockedError{addr, p}
			}
		}
	}
	return nil
}

// blockedError is an address to which no module is asked for.
type blockedError struct {
	addr  netip.Addr
	block netip.Prefix
}

func (e *blockedError) Error() string {
	return fmt.Sprintf("%s is in %s, which is never asked for modules (link-local, metadata servers, BLOCKED_CIDRS_IN_WASM_FETCH)", e.addr, e.block)
}

// insecure says whether a registry's certificate is not checked.
func (s *Store) insecure(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	return slices.ContainsFunc(s.cfg.Insecure, func(entry string) bool { return entry == "*" || entry == host || entry == name })
}

// plainAllowed says whether credentials may go there unencrypted.
func (s *Store) plainAllowed(host string) bool { return isLoopback(host) || s.insecure(host) }

func isLoopback(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	addr, err := netip.ParseAddr(name)
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || err == nil && addr.Unmap().IsLoopback()
}

// silence gives a pull up when nothing comes any more.
type silence struct {
	io.ReadCloser
	limit time.Duration
	timer *time.Timer
}

func newSilence(body io.ReadCloser, limit time.Duration, cancel context.CancelCauseFunc) *silence {
	return &silence{body, limit, time.AfterFunc(limit, func() { cancel(fmt.Errorf("no byte came for %s", limit)) })}
}

func (s *silence) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if n > 0 {
		s.timer.Reset(s.limit)
	}
	if err != nil {
		s.timer.Stop()
	}
	return n, err
}

func (s *silence) Close() error {
	s.timer.Stop()
	return s.ReadCloser.Close()
}

// statusError is an answer that is no module.
type statusError struct {
	code int
	from string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("%s answers %d %s", e.from, e.code, http.StatusText(e.code))
}

// get opens what is at a URL, unless it is still what it was, which etag names.
func (t *trip) get(ctx context.Context, u *url.URL, etag string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	resp, err := t.client().Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNotModified && etag != "" {
		return resp, nil
	}
	return nil, errors.Join(&statusError{resp.StatusCode, u.Host}, resp.Body.Close())
}
