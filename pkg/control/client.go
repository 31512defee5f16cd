package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/contract"
)

const (
	// patience is how long a command looks for an agent that may still be starting. An
	// agent binds its control socket first of all.
	patience = 5 * time.Second
	// askPeriod is the time between two attempts.
	askPeriod = 200 * time.Millisecond
	// maxAnswer bounds the JSON that is read from an agent: a pod has a few generations.
	maxAnswer = 4 << 20
	// maxReason bounds what is read of an error's text.
	maxReason = 4 << 10
)

// ErrStandby says that this container's agent stands by.
var ErrStandby = errors.New("this container's agent stands by, the pod's other container serves")

// errUnknownPath says that the agent does not have a path: its release is earlier than
// this command's.
var errUnknownPath = errors.New("the agent is of a release that does not know this question")

// Client asks an agent for what commands need: this container's own agent (that of its
// mount namespace) at its control socket. If this container has none and no other
// container can have one, it asks at the pod's ports, which all containers share.
type Client struct {
	control *http.Client
	ports   *http.Client
	// foreign is why another container's agent may answer at the ports; nil if none can.
	foreign func() error
}

// NewClient returns a client. A pod in which one of the hand-off directories exists may
// have an agent in another container.
func NewClient(handoffDirs []string) *Client {
	dialOwn := func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	return &Client{
		control: &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialOwn}},
		ports:   http.DefaultClient,
		foreign: func() error { return foreignPorts(handoffDirs, "/proc/self/net/unix") },
	}
}

// Role asks this container's own agent once, and the readiness endpoint at url if no
// container can have an agent. The error is [ErrNoAgent] if there is no agent.
func (c *Client) Role(ctx context.Context, url string) (s RoleStatus, err error) {
	_, err = c.askJSON(ctx, RolePath, &s)
	switch {
	case errors.Is(err, errUnknownPath): // a release before hot upgrades, which has no previous generation
		return ready(ctx, c.control, "http://agent"+StatusPrefix+"/healthz/ready")
	case errors.Is(err, ErrNoAgent):
		if s, err = c.Ready(ctx, url); err != nil {
			return s, fmt.Errorf("%w; %w", ErrNoAgent, err)
		}
		// Look only now: an agent binds its control socket before it answers.
		err = c.foreign()
	}
	return s, err
}

// Waiting shows this container's own agent that a `wait` waits, until done is called or ctx ends: its end by itself. An agent
// of a release that does not look at that does no harm.
func (c *Client) Waiting(ctx context.Context) (done func()) {
	waits, end := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		_ = patiently(waits, func() error {
			// The first byte makes the transport send the head.
			body := io.MultiReader(strings.NewReader("\n"), untilDone{waits})
			req, err := http.NewRequestWithContext(context.WithoutCancel(ctx), http.MethodPost, "http://agent"+WaitingPath, body)
			if err != nil {
				return err
			}
			resp, err := c.control.Do(req)
			if err == nil {
				err = resp.Body.Close()
			}
			return err
		})
	}()
	return func() {
		end()
		select {
		case <-told:
		case <-time.After(closeTimeout):
		}
	}
}

// untilDone is an empty body that ends with a context.
type untilDone struct{ ctx context.Context }

func (u untilDone) Read([]byte) (int, error) {
	<-u.ctx.Done()
	return 0, io.EOF
}

// WaitFailed tells this container's own agent why a `wait` failed. An agent of a release that does not listen to that
// is an error, too.
func (c *Client) WaitFailed(ctx context.Context, reason string) error {
	resp, err := do(ctx, c.control, http.MethodPost, "http://agent"+WaitFailedPath, reason)
	if err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("tell the agent: HTTP status code %d", resp.StatusCode)
	}
	return nil
}

// Ready asks the readiness endpoint at url once.
func (c *Client) Ready(ctx context.Context, url string) (RoleStatus, error) {
	return ready(ctx, c.ports, url)
}

// ready asks a readiness endpoint. The status 200 stands for settled and drained.
func ready(ctx context.Context, client *http.Client, url string) (RoleStatus, error) {
	resp, err := do(ctx, client, http.MethodGet, url, "")
	if err != nil {
		return RoleStatus{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return RoleStatus{Settled: true, Drained: true}, nil
	}
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, maxReason))
	return RoleStatus{}, fmt.Errorf("HTTP status code %d: %s", resp.StatusCode, strings.TrimSpace(string(reason)))
}

// UpgradeStatus asks this container's own agent; raw is its unchanged answer.
func (c *Client) UpgradeStatus(ctx context.Context) (status contract.UpgradeStatus, raw []byte, err error) {
	err = patiently(ctx, func() error {
		raw, err = c.askJSON(ctx, UpgradePath, &status)
		return err
	})
	if errors.Is(err, errUnknownPath) {
		err = fmt.Errorf("%w: it has no hot upgrade", err)
	}
	return status, raw, err
}

// Ask asks this container's own agent for a page of the control socket that answers JSON, and returns it unchanged.
func (c *Client) Ask(ctx context.Context, path string) (raw json.RawMessage, err error) {
	err = patiently(ctx, func() error {
		_, err := c.askJSON(ctx, path, &raw)
		return err
	})
	return raw, err
}

// Request is a request as it would be sent to a port of the pod.
type Request struct {
	Port               int // 15000 and 15004 are Envoy's admin API, any other the status port
	Method, Path, Body string
}

// Send sends r to this container's own agent, or to localhost if no container can have
// one. It waits some seconds for an agent to start. An agent that stands by gets no
// request, since the ports are those of the generation that serves; the error is
// [ErrStandby].
func (c *Client) Send(ctx context.Context, r Request) (resp *http.Response, err error) {
	err = patiently(ctx, func() error {
		resp, err = c.send(ctx, r)
		return err
	})
	return resp, err
}

// send sends r once.
func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	var s RoleStatus
	_, err := c.askJSON(ctx, RolePath, &s)
	switch {
	case errors.Is(err, ErrNoAgent):
		if err := c.foreign(); err != nil {
			return nil, err
		}
		return do(ctx, c.ports, r.Method, fmt.Sprintf("http://localhost:%d%s", r.Port, r.Path), r.Body)
	case err != nil && !errors.Is(err, errUnknownPath): // a release without roles always serves
		return nil, err
	case s.Role == string(handoff.RoleStandby):
		return nil, ErrStandby
	}
	prefix := StatusPrefix
	if r.Port == contract.AdminPort || r.Port == contract.DebugPort {
		prefix = AdminPrefix
	}
	return do(ctx, c.control, r.Method, "http://agent"+prefix+r.Path, r.Body)
}

// statusPorts are where an agent's status server can be: Istio's port, and that of ASM's
// manifests (--statusPort 15021).
var statusPorts = [...]int{contract.StatusPort, contract.ReadyPort}

// OpenStatus asks for a page of the status server; any status but 200 is an error. The
// caller closes it.
func (c *Client) OpenStatus(ctx context.Context, method, path string) (io.ReadCloser, error) {
	var resp *http.Response
	err := patiently(ctx, func() (err error) {
		for _, port := range statusPorts {
			resp, err = c.send(ctx, Request{Port: port, Method: method, Path: path})
			if !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ask the agent (is it running?): %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	reason, err := io.ReadAll(io.LimitReader(resp.Body, maxReason))
	text := OneLine(string(reason))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	case text == "404 page not found": // http.NotFound
		return nil, errUnknownPath
	case text == "":
		return nil, fmt.Errorf("ask the agent for %s: HTTP status code %d", path, resp.StatusCode)
	}
	return nil, errors.New(text)
}

// patiently calls ask until there is an agent, or patience is over: a command may be run
// before its agent has started. Any other error is final.
func patiently(ctx context.Context, ask func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := ask()
		absent := errors.Is(err, ErrNoAgent) || errors.Is(err, errImpostor) || errors.Is(err, unix.ECONNREFUSED)
		if !absent || !time.Now().Before(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(askPeriod):
		}
	}
}

// askJSON asks this container's own agent for path and reads its answer into a value;
// body is the unchanged answer. [ErrNoAgent] and errUnknownPath are not wrapped.
func (c *Client) askJSON(ctx context.Context, path string, into any) (body []byte, err error) {
	resp, err := do(ctx, c.control, http.MethodGet, "http://agent"+path, "")
	if errors.Is(err, ErrNoAgent) {
		return nil, ErrNoAgent
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, errUnknownPath
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent for %s: HTTP status code %d: %.*s", path, resp.StatusCode, maxReason, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return nil, fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return body, nil
}

func do(ctx context.Context, client *http.Client, method, url, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, strings.ToUpper(method), url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}
