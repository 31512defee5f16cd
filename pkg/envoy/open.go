package envoy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
)

// Open asks the admin for path and returns the reply's body as it comes, with its
// content type; the caller closes it. Nothing of it is held: it may have tens of
// megabytes. Only ctx bounds the time.
func (a *Admin) Open(ctx context.Context, path string) (body io.ReadCloser, contentType string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminHost+path, nil)
	if err != nil {
		return nil, "", fmt.Errorf("ask Envoy's admin for %q: %w", path, err)
	}
	resp, err := a.transport.RoundTrip(req)
	if err != nil {
		return nil, "", fmt.Errorf("ask Envoy's admin on %s for %s: %w", a.path, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAdminError))
		return nil, "", fmt.Errorf("ask Envoy's admin on %s for %s: %s: %s", a.path, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp.Body, resp.Header.Get("Content-Type"), nil
}

// Answers returns nil once the admin answers anything at all, which takes Envoy's main thread.
// The question costs it next to nothing. Only ctx bounds the time.
func (a *Admin) Answers(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminHost+"/ready", nil)
	if err != nil {
		return fmt.Errorf("ask Envoy's admin whether it answers: %w", err)
	}
	resp, err := a.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask Envoy's admin on %s whether it answers: %w", a.path, err)
	}
	defer resp.Body.Close()
	// What is left unread would cost the connection.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAdminError))
	return nil
}
