package serve

import (
	"regexp"
	"strconv"
	"sync"
)

// modernMinor is the minor version of Kubernetes 1 from which on kubelets run native sidecars and change the resources of
// running pods, both without a feature gate.
const modernMinor = 33

// nodes knows the oldest kubelet without a walk over all nodes for each pod.
type nodes struct {
	mu    sync.Mutex
	of    map[string]int // the minor version of each node
	count map[int]int    // how many nodes have one
}

func newNodes() *nodes {
	return &nodes{of: make(map[string]int), count: make(map[int]int)}
}

// set takes a node's version; "" is that the node is gone.
func (n *nodes) set(name, version string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if before, ok := n.of[name]; ok {
		delete(n.of, name)
		if n.count[before]--; n.count[before] == 0 {
			delete(n.count, before)
		}
	}
	if version == "" {
		return
	}
	minor := minorVersion(version)
	n.of[name] = minor
	n.count[minor]++
}

// modern reports whether every node has a kubelet of [modernMinor] or newer. Without nodes nothing is known.
func (n *nodes) modern() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	for minor := range n.count {
		if minor < modernMinor {
			return false
		}
	}
	return len(n.count) > 0
}

var kubernetesVersion = regexp.MustCompile(`^v?1\.(\d{1,4})\b`)

// minorVersion of "v1.33.2-gke.1" is 33; of what is no such version, 0.
func minorVersion(version string) int {
	found := kubernetesVersion.FindStringSubmatch(version)
	if found == nil {
		return 0
	}
	minor, _ := strconv.Atoi(found[1]) // digits
	return minor
}
