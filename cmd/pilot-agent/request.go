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

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/control"
)

// requestTimeout bounds one `request`, as Istio's does.
const requestTimeout = 60 * time.Second

// debugPorts are the ports that `request` may be pointed at (Istio's list).
var debugPorts = []int{15000, 15004, 15020, 15021}

func newRequestCommand(e *cli.Env) *cobra.Command {
	var port int
	cmd := &cobra.Command{
		Use:   "request METHOD PATH [BODY]",
		Short: "Send a request to the proxy's admin API or to the agent",
		Long: "Sends a request to this container's own agent, or to its Envoy's admin API, and prints the answer.\n" +
			"If that agent stands by, because the pod's other container serves, it does nothing and returns 0,\n" +
			"so that the hooks of the idle container do not drain the one that serves.",
		Example: "  pilot-agent request GET clusters\n" +
			"  pilot-agent request --debug-port 15020 POST drain",
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(debugPorts, port) {
				return &cli.UsageError{Err: fmt.Errorf("flag --debug-port: %d: give one of %v", port, debugPorts)}
			}
			body := ""
			if len(args) == 3 {
				body = args[2]
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
			defer cancel()
			r := control.Request{Port: port, Method: args[0], Path: "/" + strings.TrimPrefix(args[1], "/"), Body: body}
			return request(ctx, e.Client().Send, r, e.Stdout, e.Stderr)
		},
	}
	cmd.Flags().IntVar(&port, "debug-port", 15000, "port to send the request to")
	return cmd
}

// request sends r by [control.Client.Send] and prints the answer to out. Any status above 399 but 404 is an error.
// If the agent stands by, r is not sent, and a line on notes says so.
func request(ctx context.Context, send func(context.Context, control.Request) (*http.Response, error), r control.Request, out, notes io.Writer) error {
	resp, err := send(ctx, r)
	if errors.Is(err, control.ErrStandby) {
		fmt.Fprintf(notes, "pilot-agent: %s %s was not sent: %v\n", r.Method, r.Path, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s %s: %w", r.Method, r.Path, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", r.Method, r.Path, err)
	}
	if resp.StatusCode > 399 && resp.StatusCode != http.StatusNotFound {
		return fmt.Errorf("%s %s: HTTP status code %d", r.Method, r.Path, resp.StatusCode)
	}
	return nil
}
