package status

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"understudy.mesh/internal/compliance"
)

const (
	// maxProbeBody is how much of the application's answer is passed on: the
	// kubelet reads no more than that (its maxRespBodyLength).
	maxProbeBody = 10 << 10
	// maxRedirects is how many redirects a probe follows, as kubelet's do.
	maxRedirects = 10
)

// hopByHop are the headers that belong to the kubelet's connection to us, not
// to ours to the application (RFC 9110, 7.6.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// probeClient makes one connection a probe, checks no certificate (kubelet
// does not either), and knows no HTTP proxy.
func probeClient(dest destination, http2 bool, policy compliance.Policy) *http.Client {
	secure := &tls.Config{InsecureSkipVerify: true}
	policy.Restrict(secure)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(http2)
	return &http.Client{
		Transport: &http.Transport{
			DialContext:        dest.dial,
			DisableKeepAlives:  true,
			DisableCompression: true, // the kubelet's Accept-Encoding is passed on, and so is the body
			Protocols:          protocols,
			TLSClientConfig:    secure,
		},
		CheckRedirect: sameHost,
	}
}

// sameHost follows redirects within one host. One to another host is the
// answer itself: a probe must not be led out of the pod.
func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= maxRedirects {
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	return nil
}

// http sends the probe and copies the answer. It returns an error only while
// nothing has been written.
func (a *appProbes) http(ctx context.Context, w http.ResponseWriter, r *http.Request, h *httpGet) error {
	req := a.request(ctx, r, h)
	resp, err := a.client.Do(req)
	if err != nil {
		var detail *url.Error
		if errors.As(err, &detail) {
			err = detail.Err // the URL is said below
		}
		return fmt.Errorf("probe %s: %w", req.URL, err)
	}
	defer resp.Body.Close() // read as far as it is wanted
	code := resp.StatusCode
	switch {
	case code < http.StatusOK:
		return fmt.Errorf("probe %s: the application answered %d", req.URL, code)
	case code >= http.StatusMultipleChoices && code < http.StatusBadRequest:
		// A success to the kubelet, which would follow it past us.
		code = http.StatusOK
	}
	if ct := resp.Header.Get("Content-Type"); ct != "" {
		w.Header().Set("Content-Type", ct)
	}
	w.WriteHeader(code)
	if _, err := io.Copy(w, io.LimitReader(resp.Body, maxProbeBody)); err != nil {
		a.log.Debug("copy the body of a probe", "url", req.URL.String(), "error", err)
	}
	return nil
}

// request is the kubelet's request as the application would have got it:
// its headers, then the probe's own, and the Host it would have had.
func (a *appProbes) request(ctx context.Context, r *http.Request, h *httpGet) *http.Request {
	u := *h.target
	u.Scheme = h.Scheme
	u.Host = a.dest.hostPort(uint16(h.Port))
	req := (&http.Request{
		Method: http.MethodGet,
		URL:    &u,
		Header: r.Header.Clone(),
		Host:   withPort(r.Host, uint16(h.Port)),
	}).WithContext(ctx)
	for _, name := range hopByHop {
		req.Header.Del(name)
	}
	for _, header := range h.Headers {
		req.Header.Del(header.Name)
	}
	for _, header := range h.Headers {
		if strings.EqualFold(header.Name, "Host") || header.Name == ":authority" {
			req.Host = header.Value
			continue
		}
		req.Header.Add(header.Name, header.Value)
	}
	return req
}

// withPort replaces the port of a Host header, where it has one.
func withPort(host string, port uint16) string {
	h, _, err := net.SplitHostPort(host)
	if err != nil {
		return host
	}
	return net.JoinHostPort(h, strconv.Itoa(int(port)))
}
