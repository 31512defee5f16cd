package lab

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

const (
	// probePeriod is the least periodSeconds.
	probePeriod = time.Second
	// probeFailures is Kubernetes' failureThreshold: so many in a row turn the container not ready. One success turns it ready.
	probeFailures = 3
)

// probe asks the application's readiness probe until the pod is gone. What it finds counts at once, whatever else the kubelet does for the pod.
func (k *Kubelet) probe(ctx context.Context) {
	tick := time.NewTicker(probePeriod)
	defer tick.Stop()
	for failures := 0; ; {
		if err := k.askProbe(ctx); err == nil {
			failures = 0
			k.setProbed(true)
		} else if failures++; failures >= probeFailures {
			k.setProbed(false)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (k *Kubelet) askProbe(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.options.ReadinessProbe, nil)
	if err != nil {
		return err
	}
	resp, err := k.slots.lab.Out.Client().Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode < http.StatusOK || resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

func (k *Kubelet) setProbed(ready bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.probed != ready {
		k.probed = ready
		k.announce()
	}
}

// Ready reports whether the pod is, and returns a channel that is closed when that may have changed.
func (k *Kubelet) Ready() (ready bool, changed <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ready = k.probed
	for _, s := range k.status {
		ready = ready && s.Running
	}
	return ready, k.published
}
