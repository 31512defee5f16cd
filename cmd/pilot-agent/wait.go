package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/agent"
)

const (
	// readyURL is where Istio's `wait` looks, and ours when no agent of this
	// container's own is to be found.
	readyURL = "http://localhost:15021/healthz/ready"
	// maxReason bounds what is read of an answer that says why an agent is not ready.
	maxReason = 4 << 10
)

// waitOptions are the flags of `wait`; names and defaults are Istio's.
type waitOptions struct {
	timeoutSeconds       int
	requestTimeoutMillis int
	periodMillis         int
	url                  string
	urlGiven             bool
	event                string
}

func newWaitCommand(e *env) *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until this container's agent serves",
		Long: "Waits until the agent of this container serves, and returns 0; made for a postStart hook.\n" +
			"Where no agent runs in this container's mount namespace, the URL is polled instead.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.urlGiven = cmd.Flags().Changed("url")
			if err := o.validate(); err != nil {
				return err
			}
			return wait(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.timeoutSeconds, "timeoutSeconds", 60, "seconds to wait in all")
	f.IntVar(&o.requestTimeoutMillis, "requestTimeoutMillis", 500, "milliseconds to wait for one answer")
	f.IntVar(&o.periodMillis, "periodMillis", 500, "milliseconds between two questions")
	f.StringVar(&o.url, "url", readyURL, "poll this URL, whoever answers there")
	f.StringVar(&o.event, "for", "serving", "what to wait for: serving, or drained (no earlier generation's Envoy is left)")
	return cmd
}

func (o waitOptions) validate() error {
	for _, f := range []struct {
		name  string
		value int
	}{{"timeoutSeconds", o.timeoutSeconds}, {"requestTimeoutMillis", o.requestTimeoutMillis}, {"periodMillis", o.periodMillis}} {
		if f.value <= 0 {
			return &usageError{fmt.Errorf("flag --%s: %d: give a positive number", f.name, f.value)}
		}
	}
	if o.event != "serving" && o.event != "drained" {
		return &usageError{fmt.Errorf("flag --for: %q: give serving or drained", o.event)}
	}
	return nil
}

// wait polls until the agent is ready; the first question is asked at once.
func wait(ctx context.Context, o waitOptions) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(o.timeoutSeconds)*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Duration(o.periodMillis) * time.Millisecond)
	defer tick.Stop()
	for {
		last := askReady(ctx, o)
		if last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("timeout waiting for Envoy proxy to become ready. Last error: %w", last)
		case <-tick.C:
		}
	}
}

// askReady asks this container's own agent, and the URL only where there is
// none: the containers of a pod share their ports, so the URL may be answered
// by another container's agent.
func askReady(ctx context.Context, o waitOptions) error {
	timeout := time.Duration(o.requestTimeoutMillis) * time.Millisecond
	if o.urlGiven {
		return get(ctx, http.DefaultClient, o.url, timeout)
	}
	err := get(ctx, agent.NewControlClient(), "http://agent"+agent.ControlStatus+"/healthz/ready", timeout)
	if errors.Is(err, agent.ErrNoAgent) {
		return get(ctx, http.DefaultClient, o.url, timeout)
	}
	return err
}

func get(ctx context.Context, client *http.Client, url string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	reason, _ := io.ReadAll(io.LimitReader(resp.Body, maxReason))
	return fmt.Errorf("HTTP status code %d: %s", resp.StatusCode, strings.TrimSpace(string(reason)))
}
