package envoy

import (
	"context"
	"io"
	"net/http"
)

// Open asks the admin for path and returns the reply's body as it comes, with its
// content type; the caller closes it. Nothing of it is held: it may have tens of
// megabytes. Only ctx bounds the time.
func (a *Admin) Open(ctx context.Context, path string) (body io.ReadCloser, contentType string, err error) {
	resp, err := a.request(ctx, http.MethodGet, path)
	if err != nil {
		return nil, "", err
	}
	if err := refusal(resp); err != nil {
		resp.Body.Close()
		return nil, "", a.failed(http.MethodGet, path, err)
	}
	return resp.Body, resp.Header.Get("Content-Type"), nil
}

// answers returns nil once the admin answers anything at all, which takes Envoy's main thread.
// The question costs it next to nothing. Only ctx bounds the time.
func (a *Admin) answers(ctx context.Context) error {
	resp, err := a.request(ctx, http.MethodGet, "/ready")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// What is left unread would cost the connection.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAdminError))
	return nil
}
