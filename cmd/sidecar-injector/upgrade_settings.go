package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/cmd/sidecar-injector/internal/upgrader"
	"understudy.mesh/pkg/inject"
)

// settingsCheck says of pods whether another image is all that a new pod would have otherwise, by the settings as they were at first.
type settingsCheck struct {
	profiles  *offline.Profiles
	namespace inject.Namespace
	modern    bool

	mu     sync.Mutex
	seen   map[string]bool // of pods that nobody injects: their slots are in their own template
	manual int
}

// newSettingsCheck reads the settings of a namespace.
func newSettingsCheck(ctx context.Context, settings *settingsFlags, namespace string, notes io.Writer) (*settingsCheck, error) {
	found, err := settings.open(ctx, notes)
	if err != nil {
		return nil, err
	}
	if found.cluster == nil {
		return nil, fmt.Errorf("there is no cluster to upgrade: give --kubeconfig")
	}
	profiles, err := found.of(ctx, namespace)
	if err != nil {
		return nil, err
	}
	in, err := found.cluster.Namespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	return &settingsCheck{
		profiles: profiles, namespace: in, modern: found.modern(ctx), seen: map[string]bool{},
	}, nil
}

// spareMemory lets the heap grow by no more than half before it is collected: twenty thousand pods are to fit into 150 MiB, and
// nobody waits for the processor. $GOGC overrides it.
func spareMemory() {
	const percent = 50
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// deployed reports whether the upgrader's Deployment may work in the namespace.
func (c *settingsCheck) deployed() bool {
	return c.namespace.Labels[upgrader.NamespaceLabel] == "enabled"
}

// kubectlConfig is how to reach the API server that kubectl would ask, or that of a file.
func kubectlConfig(kubeconfig string) (*rest.Config, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return config, nil
}

// image is what new pods of the namespace get.
func (c *settingsCheck) image() string {
	return *c.profiles.Base(c.namespace.Name).Resolve().Proxy.Image
}

// outdated is the setting of a pod that only a new one would get; "" if there is none, or if nothing is known of that.
func (c *settingsCheck) outdated(pod *corev1.Pod) string {
	verdict := inject.Decide(c.profiles.Policy(), c.namespace, pod)
	if !verdict.Inject {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.seen[string(pod.UID)] {
			c.seen[string(pod.UID)] = true
			c.manual++
		}
		return ""
	}
	text, err := json.Marshal(pod)
	if err != nil {
		return err.Error()
	}
	read, err := inject.Read(text)
	if err != nil {
		return err.Error()
	}
	settings, _, err := inject.Settings(read.Object, c.profiles.Base(c.namespace.Name))
	if err != nil {
		return err.Error()
	}
	field, err := read.Outdated(settings, inject.Environment{Namespace: c.namespace, Native: c.modern, Resize: c.modern}, rollout.View(pod).Injected())
	if err != nil {
		return err.Error()
	}
	return field
}
