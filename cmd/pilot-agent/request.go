package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/agent"
)

// requestTimeout bounds one `request`, as Istio's does.
const requestTimeout = 60 * time.Second

// debugPorts are the ports that `request` may be pointed at (Istio's list).
var debugPorts = []int{15000, 15004, 15020, 15021}

func newRequestCommand(e *env) *cobra.Command {
	var port int
	cmd := &cobra.Command{
		Use:   "request METHOD PATH [BODY]",
		Short: "Send a request to the proxy's admin API or to the agent",
		Example: "  pilot-agent request GET clusters\n" +
			"  pilot-agent request --debug-port 15020 POST drain",
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(debugPorts, port) {
				return &usageError{fmt.Errorf("flag --debug-port: %d: give one of %v", port, debugPorts)}
			}
			body := ""
			if len(args) == 3 {
				body = args[2]
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
			defer cancel()
			return request(ctx, e.Stdout, port, args[0], args[1], body)
		},
	}
	cmd.Flags().IntVar(&port, "debug-port", 15000, "port to send the request to")
	return cmd
}

// request sends one request to this container's own agent, or to localhost where
// there is none, and prints the answer. Any status over 399 but 404 is an error.
func request(ctx context.Context, out io.Writer, port int, method, path, body string) error {
	path = "/" + strings.TrimPrefix(path, "/")
	prefix := agent.ControlStatus
	if port == 15000 || port == 15004 {
		prefix = agent.ControlAdmin
	}
	resp, err := do(ctx, agent.NewControlClient(), method, "http://agent"+prefix+path, body)
	if errors.Is(err, agent.ErrNoAgent) {
		resp, err = do(ctx, http.DefaultClient, method, fmt.Sprintf("http://localhost:%d%s", port, path), body)
	}
	if err != nil {
		return fmt.Errorf("send %s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", method, path, err)
	}
	if resp.StatusCode > 399 && resp.StatusCode != http.StatusNotFound {
		return fmt.Errorf("%s %s: HTTP status code %d", method, path, resp.StatusCode)
	}
	return nil
}

func do(ctx context.Context, client *http.Client, method, url, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
