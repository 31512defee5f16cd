package istiod

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/istiod/internal/extension"
	"understudy.mesh/pkg/xds"
	"understudy.mesh/pkg/xds/references"
)

// push is what istiod answers a pod that asks for all that an Envoy asks for.
type push struct {
	waits    map[string]bool // the types that istiod has yet to answer
	kinds    map[string]*kindOfPush
	answered time.Duration // until the first answer
	complete bool
	bodies   [][]byte // of what may need extensions
}

// kindOfPush is what came of one type.
type kindOfPush struct{ resources, bytes int }

func newPush() *push { return &push{waits: make(map[string]bool), kinds: make(map[string]*kindOfPush)} }

// fetch opens a stream, and asks as Envoy does: clusters, then their endpoints; listeners, then their routes.
func (p *push) fetch(ctx context.Context, x *Examination) (string, error) {
	begun := time.Now()
	stream, err := open(ctx, &x.Dial, x.Node, x.Log)
	if err != nil {
		return "", fmt.Errorf("%s: %w", x.Dial.Address, err)
	}
	defer stream.close(nil)
	p.ask(stream, clusterType)
	for len(p.waits) > 0 {
		select {
		case resp := <-stream.responses:
			if p.answered == 0 {
				p.answered = time.Since(begun)
			}
			p.take(stream, resp)
		case err := <-stream.ended:
			return "", p.failed(x, err)
		case <-ctx.Done():
			return "", p.failed(x, fmt.Errorf("no answer after %v", time.Since(begun).Round(time.Second)))
		}
	}
	p.complete = true
	return fmt.Sprintf("istiod answers %s after %v", x.Node.GetId(), p.answered.Round(time.Millisecond)), nil
}

// failed names what istiod was asked for and has not answered.
func (p *push) failed(x *Examination, err error) error {
	var kinds []string
	for url := range p.waits {
		kinds = append(kinds, kind(url))
	}
	slices.Sort(kinds)
	if refuses(err) {
		return fmt.Errorf("istiod refuses %s: %w", x.Node.GetId(), err)
	}
	return fmt.Errorf("istiod was asked for %s as %s: %w", strings.Join(kinds, ", "), x.Node.GetId(), err)
}

func (p *push) ask(stream *upstream, url string, names ...string) {
	p.waits[url] = true
	stream.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResourceNamesSubscribe: names})
}

// take counts a response, acknowledges it, and asks for what its resources refer to.
func (p *push) take(stream *upstream, resp *xds.Response) {
	url := resp.Type
	k := p.kinds[url]
	if k == nil {
		k = &kindOfPush{}
		p.kinds[url] = k
	}
	var refers []string
	for _, r := range resp.Resources {
		body := r.Body
		k.resources, k.bytes = k.resources+1, k.bytes+len(body)
		if url != endpointType { // of which there are most, and no extension is in one
			p.bodies = append(p.bodies, body)
		}
		refers = append(refers, references.Of(url, r.Name, body)...)
	}
	slices.Sort(refers)
	refers = slices.Compact(refers)
	stream.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: resp.Nonce})
	known := order()
	if at := slices.Index(known, url); (url == clusterType || url == listenerType) && p.waits[url] && len(refers) > 0 {
		p.ask(stream, known[at+1], refers...)
	}
	if url == clusterType && p.waits[url] {
		p.ask(stream, listenerType)
	}
	delete(p.waits, url)
}

// needs are the types of all extensions that the push has a configuration for, sorted.
func (p *push) needs() (names []string) {
	for _, body := range p.bodies {
		for name := range extension.Types(body) {
			if extension.Is(string(name)) {
				names = append(names, string(name))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// lacks are the extensions that the push needs and an Envoy does not have, sorted.
func (p *push) lacks(has extension.Set) (names []string) {
	for _, body := range p.bodies {
		names = append(names, has.Lacks(body)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func kind(url string) string { return url[strings.LastIndexByte(url, '.')+1:] }

// String is how many resources there are of each type, and how large they are.
func (p *push) String() string {
	var texts []string
	bytes := 0
	for _, url := range order() {
		if k := p.kinds[url]; k != nil {
			texts = append(texts, fmt.Sprintf("%d %s (%d KiB)", k.resources, kind(url), k.bytes>>10))
			bytes += k.bytes
		}
	}
	return fmt.Sprintf("%s; %d KiB in all", strings.Join(texts, ", "), bytes>>10)
}
