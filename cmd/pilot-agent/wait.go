package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
)

const (
	// startAllowance is how long an agent may take to start by default, as in Istio. In a
	// hot upgrade the drain of the previous generation is added.
	startAllowance = 60 * time.Second
	// longestDrain bounds the drain time that is added: no setting of the agent is longer.
	longestDrain = 30 * 24 * time.Hour
)

// What --for takes.
const (
	forServing = "serving"
	forDrained = "drained"
)

// waitOptions are the flags of `wait`; names and defaults are Istio's.
type waitOptions struct {
	timeoutSeconds       int
	timeoutGiven         bool
	requestTimeoutMillis int
	periodMillis         int
	url                  string
	urlGiven             bool
	event                string
}

func newWaitCommand(e *cli.Env) *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until this container's agent serves",
		Long: `Waits until this container's agent serves, or stands by because a newer one serves in the pod's other
container, and returns 0. It is made for a postStart hook. With --for=drained it also waits until the
previous generation has ended; do not use that in a hook, as the kubelet does nothing else for the pod meanwhile.
Once this container's agent serves, a time-out is a warning; before that it is an error with exit status 1. It fails
at once when that agent ends. The reason becomes the message of the container's last state (kubectl describe pod).

If no container of the pod has an agent, the URL is polled instead.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.urlGiven = cmd.Flags().Changed("url")
			o.timeoutGiven = cmd.Flags().Changed("timeoutSeconds")
			if err := o.validate(); err != nil {
				return err
			}
			if !o.urlGiven {
				defer e.Client().Waiting(cmd.Context())()
			}
			return newWaiter(e, o).wait(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.timeoutSeconds, "timeoutSeconds", int(startAllowance.Seconds()), "seconds to wait in all; without this flag, the agent's --upgradeDrainDuration is added")
	f.IntVar(&o.requestTimeoutMillis, "requestTimeoutMillis", 500, "milliseconds to wait for one answer")
	f.IntVar(&o.periodMillis, "periodMillis", 500, "milliseconds between two requests")
	// Istio's `wait` polls this one, and ours if no container has an agent.
	f.StringVar(&o.url, "url", contract.ReadyURL, "poll this URL instead of asking this container's agent")
	f.StringVar(&o.event, "for", forServing, "what to wait for: serving, or drained (the Envoy of every earlier generation has ended)")
	cli.CompleteFlag(cmd, "for", forServing, forDrained)
	return cmd
}

func (o waitOptions) validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{{"timeoutSeconds", o.timeoutSeconds}, {"requestTimeoutMillis", o.requestTimeoutMillis}, {"periodMillis", o.periodMillis}} {
		if f.value <= 0 {
			return &cli.UsageError{Err: fmt.Errorf("flag --%s: %d: give a positive number", f.name, f.value)}
		}
	}
	if o.event != forServing && o.event != forDrained {
		return &cli.UsageError{Err: fmt.Errorf("flag --for: %q: give serving or drained", o.event)}
	}
	return nil
}

// waiter asks until the agent is in the state that is waited for.
type waiter struct {
	// ask asks once, within ctx.
	ask     func(ctx context.Context) (control.RoleStatus, error)
	warn    func(format string, args ...any)
	drained bool
	timeout time.Duration
	// extend adds the agent's drain time to timeout, as soon as it is known.
	extend          bool
	request, period time.Duration
}

func newWaiter(e *cli.Env, o waitOptions) waiter {
	w := waiter{
		warn:    e.Warn,
		drained: o.event == forDrained,
		timeout: time.Duration(o.timeoutSeconds) * time.Second,
		extend:  !o.timeoutGiven,
		request: time.Duration(o.requestTimeoutMillis) * time.Millisecond,
		period:  time.Duration(o.periodMillis) * time.Millisecond,
	}
	ask := e.Client().Role
	if o.urlGiven {
		ask = e.Client().Ready
	}
	w.ask = func(ctx context.Context) (control.RoleStatus, error) { return ask(ctx, o.url) }
	return w
}

// wait asks until the agent is in the state that is waited for, at once for the first time, or will never be.
// It never fails while a settled agent is only late with its drain: a hook that fails ends
// the container, and with it the generation that serves.
func (w waiter) wait(ctx context.Context) error {
	start := time.Now()
	deadline := start.Add(w.timeout)
	settled := false
	var last error
	for {
		status, err := w.askOnce(ctx, deadline)
		switch {
		case err == nil && status.Failed:
			return fmt.Errorf("this container's agent ends, and Envoy proxy does not become ready: %s", cmp.Or(status.Reason, "it gives no reason"))
		case err == nil && w.reached(status):
			return nil
		case err == nil:
			settled, last = status.Settled, pending(status)
			if w.extend {
				deadline = start.Add(w.timeout + drainTime(status))
			}
		case errors.Is(err, control.ErrNoAgent): // it has ended, and is not settled any more
			settled, last = false, err
		case last == nil || ctx.Err() == nil && time.Now().Before(deadline): // else the deadline cut it off, and the error before says more
			last = err
		}
		rest := time.Until(deadline)
		if rest <= 0 {
			return w.end(settled, "timeout waiting", last)
		}
		select {
		case <-ctx.Done():
			return w.end(settled, "interrupted while waiting", last)
		case <-time.After(min(w.period, rest)):
		}
	}
}

func (w waiter) askOnce(ctx context.Context, deadline time.Time) (control.RoleStatus, error) {
	if limit := time.Now().Add(w.request); limit.Before(deadline) {
		deadline = limit
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return w.ask(ctx)
}

func (w waiter) reached(s control.RoleStatus) bool {
	return s.Settled && (s.Drained || !w.drained)
}

// pending is what the agent says is pending.
func pending(s control.RoleStatus) error {
	return fmt.Errorf("the agent is %s: %s", cmp.Or(s.Role, "in no role"), cmp.Or(s.Reason, "it gives no reason"))
}

// drainTime is the longest time for which the previous generation may go on serving.
func drainTime(s control.RoleStatus) time.Duration {
	seconds := min(max(s.UpgradeDrainSeconds, 0), longestDrain.Seconds())
	return time.Duration(seconds * float64(time.Second))
}

func (w waiter) end(settled bool, how string, last error) error {
	if settled {
		w.warn("%s for the generation before to end, while this one serves: %v", how, last)
		return nil
	}
	return fmt.Errorf("%s for Envoy proxy to become ready. Last error: %w", how, last)
}
