package serve

import (
	"sync"

	"understudy.mesh/pkg/inject"
)

// nodes knows whether every kubelet is modern without a walk over all nodes for each pod.
type nodes struct {
	mu     sync.Mutex
	modern map[string]bool // by name of the node
	old    int             // how many are not
}

func newNodes() *nodes { return &nodes{modern: make(map[string]bool)} }

// set takes a node's version; "" is that the node is gone.
func (n *nodes) set(name, version string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if modern, ok := n.modern[name]; ok && !modern {
		n.old--
	}
	delete(n.modern, name)
	if version == "" {
		return
	}
	modern, _ := inject.ParseKubelet(version) // one that says something else may be anything
	n.modern[name] = modern
	if !modern {
		n.old++
	}
}

// all reports whether every node has a modern kubelet. Without nodes nothing is known.
func (n *nodes) all() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.modern) > 0 && n.old == 0
}
