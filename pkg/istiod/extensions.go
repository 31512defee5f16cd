package istiod

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"understudy.mesh/pkg/istiod/internal/extension"
	"understudy.mesh/pkg/xds"
)

// lackRemedy is what helps against a missing extension. A stock Envoy has none of Istio's own, which a default istiod asks for.
const lackRemedy = "use an image with Istio's Envoy, or keep istiod from asking for them (docs/istiod.md)"

// inForce are the types of the extensions by which Envoy has taken what it has, sorted. What it has no extension of such a type
// for, and has taken all the same, needs none.
func (i *Istiod) inForce() []string {
	names := []string{}
	if node := i.c.Relay.Node(); node != nil {
		has, seen := extension.Of(node), make(map[string]bool)
		i.c.Relay.Taken(func(body []byte) {
			for name := range extension.Types(body) {
				if has[string(name)] && !seen[string(name)] {
					seen[string(name)] = true
					names = append(names, string(name))
				}
			}
		})
	}
	slices.Sort(names)
	return names
}

// lacking is what Envoy lacks of what istiod's resources need. It is safe for concurrent use.
type lacking struct {
	mu        sync.Mutex
	has       extension.Set
	resources map[xds.ID][]string // those that need something which Envoy lacks
	told      map[string]bool
}

// begin starts with a stream, on which istiod tells everything anew, and with the Envoy that asks.
func (l *lacking) begin(node *corev3.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.has, l.resources = extension.Of(node), make(map[xds.ID][]string)
	if l.told == nil {
		l.told = make(map[string]bool)
	}
}

// take takes in a response, and returns those extensions that Envoy lacks and that were not returned before.
func (l *lacking) take(resp *xds.Response) (news []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range resp.Removed {
		delete(l.resources, xds.ID{Type: resp.Type, Name: name})
	}
	for _, r := range resp.Resources {
		id := xds.ID{Type: resp.Type, Name: r.Name}
		names := l.has.Lacks(r.Body)
		if len(names) == 0 {
			delete(l.resources, id)
			continue
		}
		l.resources[id] = names
		for _, name := range names {
			if !l.told[name] {
				l.told[name] = true
				news = append(news, name)
			}
		}
	}
	return news
}

// of says what a resource needs that Envoy lacks, as a part of a sentence; "": nothing.
func (l *lacking) of(id xds.ID) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.resources[id]) == 0 {
		return ""
	}
	return fmt.Sprintf(", which lacks the extensions %s: %s", strings.Join(l.resources[id], ", "), lackRemedy)
}

// counts returns how many resources need each of the extensions that Envoy lacks.
func (l *lacking) counts() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	counts := make(map[string]int)
	for names := range maps.Values(l.resources) {
		for _, name := range names {
			counts[name]++
		}
	}
	return counts
}

// earlyResponses are those that have come before Envoy, which names its extensions when it does.
type earlyResponses struct {
	waits bool
	list  []*xds.Response
}

// meet takes in which extensions Envoy has, once on each stream.
func (l *loop) meet() {
	node := l.i.c.Relay.Node()
	if node == nil || !l.early.waits {
		return
	}
	l.i.lacking.begin(node)
	early := l.early.list
	l.early = earlyResponses{}
	for _, resp := range early {
		l.lack(resp)
	}
}

// lack has the log name the extensions that a response needs and Envoy lacks, each once.
func (l *loop) lack(resp *xds.Response) {
	if l.early.waits {
		l.early.list = append(l.early.list, resp)
		return
	}
	if names := l.i.lacking.take(resp); len(names) > 0 {
		l.i.log.Warn("istiod's configuration needs extensions that this Envoy lacks: it will refuse what has them", "extensions", strings.Join(names, ","), "remedy", lackRemedy)
	}
}
