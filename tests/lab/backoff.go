package lab

import "time"

const (
	firstRestartPeriod = 10 * time.Second
	// maxRestartPeriod is the default of crashLoopBackOff.maxContainerRestartPeriod.
	maxRestartPeriod = 300 * time.Second
	// restartsForgotten is how long the kubelet remembers a start after which it has started nothing under the same key.
	restartsForgotten = 600 * time.Second
)

// backOff is the kubelet's memory of what it has started (Kubernetes 1.37: doBackOff in pkg/kubelet/kuberuntime/kuberuntime_manager.go,
// Backoff in client-go's util/flowcontrol). A key is a pod's container with its image as it is written: an image that is new to
// the container starts at once, whatever became of the one before; one that the container had comes under its own count again.
type backOff struct {
	max     time.Duration
	entries map[string]backOffEntry
}

// backOffEntry is one key's last start that counted.
type backOffEntry struct {
	period time.Duration // that the next start waits
	start  time.Time
}

func newBackOff(longest time.Duration) *backOff {
	return &backOff{max: longest, entries: map[string]backOffEntry{}}
}

// start counts the start of a container of which the last one ended at a time. It returns false if that would be too early, and how
// long to wait: the period begins with that end. Before any has ended there is nothing to count.
func (b *backOff) start(key string, ended time.Time) (wait time.Duration, ok bool) {
	if ended.IsZero() {
		return 0, true
	}
	now := time.Now()
	entry, known := b.entries[key]
	if known = known && now.Sub(entry.start) <= restartsForgotten; known && now.Sub(ended) < entry.period {
		return entry.period - now.Sub(ended), false
	}
	period := min(firstRestartPeriod, b.max)
	if known {
		period = min(2*entry.period, b.max)
	}
	b.entries[key] = backOffEntry{period: period, start: now}
	return 0, true
}
