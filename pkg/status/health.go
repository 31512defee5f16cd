package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	"understudy.mesh/internal/compliance"
)

const (
	// healthAgent is how the application sees who asks for the control plane's sake (Istio's).
	healthAgent = "istio-probe/1.0"
	// Periods of a probe that names none (Istio's).
	healthTimeout = time.Second
	healthPeriod  = 10 * time.Second
	// healthWaitDelay is how long a command that was killed may keep others from going on.
	healthWaitDelay = time.Second
)

// HealthConfig says how the application is asked how it is.
type HealthConfig struct {
	// Probe is ProxyConfig.readinessProbe in JSON.
	Probe []byte
	// PodIPs and LegacyLocalhostProbe say where a probe goes that names no host, as for probes of the kubelet's.
	PodIPs               []netip.Addr
	LegacyLocalhostProbe bool
	// Environ is the environment of a command.
	Environ []string
	// Begin is closed when the proxy has come into force: an application is not asked for before, as nobody could reach it.
	Begin <-chan struct{}
	// Ready is the agent's own readiness: a workload whose proxy is not ready is none that is well.
	Ready *Readiness
	// Compliance is a policy that the probe's TLS keeps.
	Compliance compliance.Policy
	Log        *slog.Logger
}

// Health asks the application how it is, for a control plane that does not hear it of a kubelet. It is made by NewHealth.
type Health struct {
	c     HealthConfig
	probe healthProbe
	app   appProbes
}

// healthProbe is a probe of Istio's API.
type healthProbe struct {
	prober
	Exec                *execCommand `json:"exec"`
	InitialDelaySeconds int32        `json:"initialDelaySeconds"`
	PeriodSeconds       int32        `json:"periodSeconds"`
	SuccessThreshold    int32        `json:"successThreshold"`
	FailureThreshold    int32        `json:"failureThreshold"`

	host string // of httpGet or tcpSocket; "" is the pod
}

type execCommand struct {
	Command []string `json:"command"`
}

// NewHealth checks c, and asks nothing.
func NewHealth(c HealthConfig) (*Health, error) {
	probe, err := parseHealthProbe(c.Probe)
	if err != nil {
		return nil, err
	}
	dest := newDestination(c.PodIPs, c.LegacyLocalhostProbe)
	return &Health{c: c, probe: probe, app: appProbes{dest: dest, client: probeClient(dest, false, c.Compliance), log: c.Log}}, nil
}

func parseHealthProbe(text []byte) (p healthProbe, err error) {
	var hosts struct {
		HTTPGet   struct{ Host string } `json:"httpGet"`
		TCPSocket struct{ Host string } `json:"tcpSocket"`
	}
	if err := errors.Join(json.Unmarshal(text, &p), json.Unmarshal(text, &hosts)); err != nil {
		return p, fmt.Errorf("want a probe of Istio's API: %w", err)
	}
	p.host = hosts.HTTPGet.Host + hosts.TCPSocket.Host // there is one of them
	for name, n := range map[string]int32{
		"initialDelaySeconds": p.InitialDelaySeconds, "timeoutSeconds": p.TimeoutSeconds, "periodSeconds": p.PeriodSeconds,
		"successThreshold": p.SuccessThreshold, "failureThreshold": p.FailureThreshold,
	} {
		if n < 0 {
			return p, fmt.Errorf("%s %d: want 0 or more", name, n)
		}
	}
	if p.Exec == nil {
		return p, p.check()
	}
	if p.HTTPGet != nil || p.TCPSocket != nil || p.GRPC != nil {
		return p, errors.New("want exactly one of httpGet, tcpSocket, exec and grpc")
	}
	if len(p.Exec.Command) == 0 {
		return p, errors.New("exec.command is missing: want a program and its arguments")
	}
	return p, nil
}

// Run asks again and again, until ctx ends, and says how the application is when that is first known, and when it is otherwise
// than before: nil, or what is wrong.
func (h *Health) Run(ctx context.Context, say func(error)) {
	delay := time.NewTimer(seconds(h.probe.InitialDelaySeconds, 0))
	defer delay.Stop()
	select {
	case <-h.c.Begin:
	case <-ctx.Done():
		return
	}
	select {
	case <-delay.C:
	case <-ctx.Done():
		return
	}
	verdict := verdict{succeed: max(1, h.probe.SuccessThreshold), fail: max(1, h.probe.FailureThreshold)}
	period := time.NewTicker(seconds(h.probe.PeriodSeconds, healthPeriod))
	defer period.Stop()
	for {
		err := h.check(ctx)
		if ctx.Err() != nil {
			return // which the application is not to blame for
		}
		if verdict.take(err) {
			say(err)
		}
		select {
		case <-period.C:
		case <-ctx.Done():
			return
		}
	}
}

// verdict is what is thought of the application after some probes.
type verdict struct {
	succeed, fail int32 // how many in a row it takes
	row           int32 // of the same kind as the last one
	well, known   bool  // what was said last
	last          bool  // how the last one ended
}

// take takes in a probe, and tells whether there is something new to say.
func (v *verdict) take(err error) (news bool) {
	good := err == nil
	if good != v.last {
		v.row = 0
	}
	v.last = good
	v.row++
	need := v.fail
	if good {
		need = v.succeed
	}
	if v.row < need || v.known && v.well == good {
		return false
	}
	v.known, v.well = true, good
	return true
}

// check asks once.
func (h *Health) check(ctx context.Context) error {
	if ready, pending := h.c.Ready.Check(); !ready {
		return fmt.Errorf("the proxy is not ready: %s", pending[0])
	}
	ctx, cancel := context.WithTimeout(ctx, seconds(h.probe.TimeoutSeconds, healthTimeout))
	defer cancel()
	switch p := h.probe; {
	case p.Exec != nil:
		return h.exec(ctx, p.Exec.Command)
	case p.HTTPGet != nil:
		return h.http(ctx, p.HTTPGet)
	case p.TCPSocket != nil:
		return h.app.tcp(ctx, h.address(p.TCPSocket.Port))
	default:
		return h.app.grpc(ctx, healthAgent, p.GRPC)
	}
}

// address is where a port of the application's is.
func (h *Health) address(p port) string {
	if h.probe.host == "" {
		return h.app.dest.hostPort(uint16(p))
	}
	return net.JoinHostPort(h.probe.host, strconv.Itoa(int(p)))
}

// http succeeds with a status from 200 to 399.
func (h *Health) http(ctx context.Context, g *httpGet) error {
	address := h.address(g.Port)
	req := h.app.request(ctx, &http.Request{Header: http.Header{"User-Agent": {healthAgent}}, Host: address}, g)
	req.URL.Host = address
	resp, err := h.app.client.Do(req)
	if err != nil {
		return fmt.Errorf("probe the application: %w", err)
	}
	resp.Body.Close() // nobody reads it
	if resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("probe %s: the application answered %d", req.URL, resp.StatusCode)
	}
	return nil
}

// exec succeeds with a command that does.
func (h *Health) exec(ctx context.Context, command []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env, cmd.WaitDelay = h.c.Environ, healthWaitDelay
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		}
		return fmt.Errorf("probe the application by %q: %w", command[0], err)
	}
	return nil
}

func seconds(n int32, unset time.Duration) time.Duration {
	if n == 0 {
		return unset
	}
	return time.Duration(n) * time.Second
}
