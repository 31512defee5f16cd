package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
)

// requestTimeout bounds one `request`, as Istio's does.
const requestTimeout = 60 * time.Second

func newRequestCommand(e *cli.Env) *cobra.Command {
	var port int
	cmd := &cobra.Command{
		Use:   "request METHOD PATH [BODY]",
		Short: "Send a request to the proxy's admin API or to the agent",
		Long: "Sends a request to this container's own agent, or to its Envoy's admin API, and prints the answer.\n" +
			"If that agent stands by, because the pod's other container serves, it does nothing and returns 0,\n" +
			"so that the hooks of the idle container do not drain the one that serves.",
		Example: "  pilot-agent request GET clusters\n" +
			"  pilot-agent request POST drain",
		Args: cobra.RangeArgs(2, 3),
		RunE: func(cmd *cobra.Command, args []string) error {
			if port < 1 || port > math.MaxUint16 { // --statusPort may be any
				return &cli.UsageError{Err: fmt.Errorf("flag --debug-port: %d: give a port from 1 to %d, such as 15000 (Envoy's admin API) or 15020 (the agent)", port, math.MaxUint16)}
			}
			target := "/" + strings.TrimPrefix(args[1], "/")
			if target == contract.DrainPath && !cmd.Flags().Changed("debug-port") {
				port = contract.StatusPort
			}
			body := ""
			if len(args) == 3 {
				body = args[2]
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), requestTimeout)
			defer cancel()
			r := control.Request{Port: port, Method: args[0], Path: target, Body: body}
			return request(ctx, e.Client().Send, r, e.Stdout, e.Stderr)
		},
	}
	cmd.Flags().IntVar(&port, "debug-port", contract.AdminPort, "port to send the request to: 15000 and 15004 are Envoy's admin API, any other the agent's status port; POST drain goes to that by itself")
	return cmd
}

// request sends r by [control.Client.Send] and prints the answer to out. Any status above 399 is an error, but as with Istio 404 for
// what only asks: a hook must not seem to have done what nobody knows.
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
	asks := r.Method == http.MethodGet || r.Method == http.MethodHead
	if resp.StatusCode > 399 && !(asks && resp.StatusCode == http.StatusNotFound) {
		return fmt.Errorf("%s %s: HTTP status code %d", r.Method, r.Path, resp.StatusCode)
	}
	return nil
}
