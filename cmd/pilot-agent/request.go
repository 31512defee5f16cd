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

	"understudy.mesh/hotrestart"
	"understudy.mesh/pkg/control"
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
		Long: "Sends a request to this container's own agent, or to its Envoy's admin API, and prints the answer.\n" +
			"In a container that stands by, because the pod's other one serves, it does nothing and returns 0,\n" +
			"so that the hooks of the idle container do not drain the one that serves.",
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
			r := portRequest{port: port, method: args[0], path: "/" + strings.TrimPrefix(args[1], "/"), body: body}
			return e.container().request(ctx, r, e.Stdout, e.Stderr)
		},
	}
	cmd.Flags().IntVar(&port, "debug-port", 15000, "port to send the request to")
	return cmd
}

// portRequest is a request as it would be sent to a port of the pod.
type portRequest struct {
	port               int
	method, path, body string
}

// request sends r to this container's own agent, or to localhost where there can be
// none, and prints the answer to out. Any status over 399 but 404 is an error. A standby
// has nothing to answer with, and the ports are those of the generation that serves:
// it gets no request, and one line on notes says so.
func (c container) request(ctx context.Context, r portRequest, out, notes io.Writer) error {
	var resp *http.Response
	err := patiently(ctx, func() (err error) {
		resp, err = c.send(ctx, r)
		return err
	})
	if errors.Is(err, errStandby) {
		fmt.Fprintf(notes, "pilot-agent: %s %s was not sent: %v\n", r.method, r.path, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("send %s %s: %w", r.method, r.path, err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(out, resp.Body); err != nil {
		return fmt.Errorf("read the answer to %s %s: %w", r.method, r.path, err)
	}
	if resp.StatusCode > 399 && resp.StatusCode != http.StatusNotFound {
		return fmt.Errorf("%s %s: HTTP status code %d", r.method, r.path, resp.StatusCode)
	}
	return nil
}

// errStandby says that this container's agent idles.
var errStandby = errors.New("this container's agent stands by, the pod's other container serves")

// send sends r once.
func (c container) send(ctx context.Context, r portRequest) (*http.Response, error) {
	var s control.RoleStatus
	_, err := c.askJSON(ctx, control.RolePath, &s)
	switch {
	case errors.Is(err, control.ErrNoAgent):
		if err := c.foreign(); err != nil {
			return nil, err
		}
		return do(ctx, c.ports, r.method, fmt.Sprintf("http://localhost:%d%s", r.port, r.path), r.body)
	case err != nil && !errors.Is(err, errUnknownPath): // a release that does not know roles serves
		return nil, err
	case s.Role == string(hotrestart.RoleStandby):
		return nil, errStandby
	}
	prefix := control.StatusPrefix
	if r.port == 15000 || r.port == 15004 {
		prefix = control.AdminPrefix
	}
	return do(ctx, c.control, r.method, "http://agent"+prefix+r.path, r.body)
}

func do(ctx context.Context, client *http.Client, method, url, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
