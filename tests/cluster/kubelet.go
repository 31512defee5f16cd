package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"understudy.mesh/tests/cluster/internal/node"
	"understudy.mesh/tests/lab"
)

// QuickRestarts lets a container that ends again and again wait a second at most until it is started again: without it, as
// with every kubelet that nobody configured, the waits are 10, 20, 40 s and so on (to be given to ConfigureKubelet).
func QuickRestarts() map[string]any {
	return map[string]any{"crashLoopBackOff": map[string]any{"maxContainerRestartPeriod": "1s"}}
}

// ConfigureKubelet restarts the kubelet with settings of its KubeletConfiguration besides the cluster's, for as long as the
// test lasts.
func (c *Cluster) ConfigureKubelet(t lab.T, settings map[string]any) {
	t.Helper()
	file := filepath.Join(c.state(), node.KubeletDir, "50-test.conf")
	restart := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), callLimit)
		defer cancel()
		return c.Restart(ctx, Kubelet)
	}
	all := map[string]any{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration"}
	for name, value := range settings {
		all[name] = value
	}
	text, err := json.Marshal(all)
	if err == nil {
		err = os.WriteFile(file, text, 0o644)
	}
	if err != nil {
		t.Fatalf("configure the kubelet: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(os.Remove(file), restart()); err != nil {
			t.Logf("the kubelet keeps the test's settings: %v", err)
		}
	})
	began := time.Now()
	if err := restart(); err != nil {
		t.Fatalf("configure the kubelet: %v", err)
	}
	// It serves its health before it works for pods.
	lab.Eventually(t, callLimit, "the kubelet reports with its new settings", func() error {
		var lease struct{ Spec struct{ RenewTime time.Time } }
		out, err := c.Kubectl(context.Background(), nil, "get", "lease", node.Name, "--namespace", "kube-node-lease", "--output", "json")
		if err == nil {
			err = json.Unmarshal([]byte(out), &lease)
		}
		if err == nil && lease.Spec.RenewTime.Before(began) {
			err = fmt.Errorf("it has not since %v", lease.Spec.RenewTime)
		}
		return err
	})
}
