package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/xds"
)

const (
	// warmingPoll is how often Envoy is asked whether what it acknowledged is in
	// force: a listener answers its ACK before it has warmed.
	warmingPoll = 20 * time.Millisecond
	// pollShare keeps the questions to a fifth of Envoy's main thread: in a large mesh
	// each of them takes it a while.
	pollShare = 4
	// supersededPoll is how often a wait for Envoy's answer looks for a newer
	// configuration, which makes the wait pointless.
	supersededPoll = 100 * time.Millisecond
	// retryRefused is how long Envoy is left alone with what it refused: the port that
	// a listener could not bind may become free.
	retryRefused = 5 * time.Second
	// lingerMargin is added to the TTL of a removed name before its listener goes:
	// a client may have got the last answer just before the name went, and a
	// resolver rounds its TTL up to a whole second.
	lingerMargin = 2 * time.Second
)

// publisher brings registries into force so that a name never resolves to an
// address that Envoy cannot route: what is added is in force in Envoy before its
// name appears; what is removed loses its name first, and its listener stays
// until the last answer's TTL is over.
type publisher struct {
	build  func(*mesh.Registry, map[string][]netip.Addr) (*mesh.Output, error)
	assign func(hosts []string) (map[string][]netip.Addr, error)
	// set gives Envoy its whole configuration; applied waits until it has taken
	// that version ([xds.Server]).
	set     func(xds.Snapshot) uint64
	applied func(ctx context.Context, version uint64) error
	// warming returns how many clusters and listeners Envoy has taken but does not use yet.
	warming func(context.Context) (clusters, listeners uint64, err error)
	// names publishes what becomes different in what DNS answers: hosts that are new or have
	// other addresses, and names that are gone; nil without DNS capture.
	names func(set []dnsproxy.Host, gone []string)
	ttl   time.Duration
	now   func() time.Time
	log   *slog.Logger
	// settled is called each time Envoy has answered for a configuration; refused is
	// nil when it took everything.
	settled func(refused *xds.RejectedError)

	// current is what Envoy was last given, without what lingers; shown is the same for
	// other goroutines.
	current   *mesh.Output
	shown     atomic.Pointer[mesh.Output]
	inherited bool        // current is the generation before's, not the files' yet
	inForce   []mesh.Host // what DNS answers
	named     []mesh.Host // the same, sorted, as names was told: nothing yet of what was inherited
	lingering []lingerer
	refused   string       // what was logged last of Envoy's refusals; "" when it took everything
	unknown   atomic.Int64 // hosts that DNS does not answer because Envoy refused them, for the metric
}

// lingerer is a resource that no registry names any more, kept while clients
// may still hold an answer that leads to it.
type lingerer struct {
	cluster  bool
	resource mesh.Message
	until    time.Time
}

// seed makes out, of the generation before, what the first registry is a change of.
func (p *publisher) seed(out *mesh.Output) {
	p.current, p.inForce, p.inherited = out, out.Hosts, true
}

// published is what Envoy was given last and the names that DNS answers; nil before the first.
func (p *publisher) published() *mesh.Output { return p.shown.Load() }

// run publishes each registry that arrives on changes until ctx ends; of
// several that queue up only the last counts.
func (p *publisher) run(ctx context.Context, changes <-chan *mesh.Registry) {
	var expire, retry <-chan time.Time
	if p.current != nil { // inherited, or interrupted
		p.settle(ctx, changes)
		expire = p.nextExpiry()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case reg := <-changes:
			p.publish(ctx, reg, changes)
		case <-retry:
			p.settle(ctx, changes)
		case <-expire:
			p.send()
		}
		expire, retry = p.nextExpiry(), nil
		if p.refused != "" {
			retry = time.After(retryRefused)
		}
	}
}

// publish brings reg into force.
func (p *publisher) publish(ctx context.Context, reg *mesh.Registry, changes <-chan *mesh.Registry) {
	vips, err := p.assign(reg.AutoHosts())
	if err != nil {
		p.log.Error("some hosts get no VIP and stay unknown to DNS", "err", err)
	}
	out, err := p.build(reg, vips)
	if err != nil {
		p.log.Error("build Envoy's configuration; the last good one stays", "err", err)
		return
	}
	p.log.Debug("built Envoy's configuration")
	if p.current != nil { // before the first table DNS holds queries, which an empty one would end
		p.answer(retained(p.inForce, out.Hosts))
		p.linger(out)
	}
	p.current, p.inherited = out, false
	p.settle(ctx, changes)
}

// settle gives Envoy the current resources and, once it uses them, publishes the
// names of those that it took. It gives up when ctx ends or when a newer registry
// is waiting; names that are not in force then stay unpublished.
func (p *publisher) settle(ctx context.Context, changes <-chan *mesh.Registry) {
	refused, err := p.await(ctx, p.send(), changes)
	if err != nil {
		return // superseded, or ending
	}
	hosts, unknown := p.current.Hosts, 0
	if refused != nil {
		hosts, unknown = withoutRefused(hosts, refused.Resources)
	}
	p.unknown.Store(int64(unknown))
	p.answer(hosts)
	p.report(refused, len(hosts))
	p.shown.Store(&mesh.Output{Clusters: p.current.Clusters, Listeners: p.current.Listeners, Hosts: hosts})
	if !p.inherited {
		p.settled(refused)
	}
}

// report logs what Envoy refuses once, however often it is tried again.
func (p *publisher) report(refused *xds.RejectedError, hosts int) {
	reasons := ""
	if refused != nil {
		reasons = strings.Join(refused.Reasons, "; ")
	}
	switch {
	case reasons == p.refused:
	case reasons == "":
		p.log.Info("Envoy takes the whole configuration again")
	default:
		p.log.Error("Envoy refused a part of the configuration: names that need it stay unknown to DNS, and it is tried again",
			"every", retryRefused, "reason", reasons)
	}
	p.refused = reasons
	p.log.Debug("configuration in force", "hosts", hosts, "clusters", len(p.current.Clusters), "listeners", len(p.current.Listeners))
}

// answer makes DNS answer exactly hosts.
func (p *publisher) answer(hosts []mesh.Host) {
	p.inForce = hosts
	if p.names == nil {
		return
	}
	byName := func(a, b mesh.Host) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(hosts, byName) { // inherited from who knows which release
		hosts = slices.SortedFunc(slices.Values(hosts), byName)
	}
	set, gone := difference(p.named, hosts)
	p.named = hosts
	p.names(set, gone)
}

// difference returns what makes wanted of old; both are sorted by name, each name once.
func difference(old, wanted []mesh.Host) (set []dnsproxy.Host, gone []string) {
	for _, h := range wanted {
		for len(old) > 0 && old[0].Name < h.Name {
			gone, old = append(gone, old[0].Name), old[1:]
		}
		if len(old) > 0 && old[0].Name == h.Name {
			same := old[0].VIP == h.VIP && slices.Equal(old[0].Addrs, h.Addrs)
			if old = old[1:]; same {
				continue
			}
		}
		set = append(set, dnsproxy.Host{Name: h.Name, Addrs: h.Addrs, VIP: h.VIP, Forwarded: len(h.Addrs) == 0})
	}
	for _, h := range old {
		gone = append(gone, h.Name)
	}
	return set, gone
}

// retained returns the hosts of old that are still wanted, as they were.
func retained(old, wanted []mesh.Host) []mesh.Host {
	names := make(map[string]bool, len(wanted))
	for _, h := range wanted {
		names[h.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(old), func(h mesh.Host) bool { return !names[h.Name] })
}

// linger keeps what out no longer has for the time that DNS answers live.
func (p *publisher) linger(out *mesh.Output) {
	until := p.now().Add(p.ttl + lingerMargin)
	keep := func(cluster bool, old, wanted []mesh.Message) {
		names := nameSet(wanted)
		p.lingering = slices.DeleteFunc(p.lingering, func(l lingerer) bool {
			return l.cluster == cluster && names[l.resource.Name]
		})
		for _, r := range old {
			if !names[r.Name] {
				p.lingering = append(p.lingering, lingerer{cluster, r, until})
			}
		}
	}
	keep(true, p.current.Clusters, out.Clusters)
	keep(false, p.current.Listeners, out.Listeners)
}

func nameSet(rs []mesh.Message) map[string]bool {
	names := make(map[string]bool, len(rs))
	for _, r := range rs {
		names[r.Name] = true
	}
	return names
}

// send gives Envoy the current resources and what still lingers, and returns the snapshot's version.
func (p *publisher) send() uint64 {
	now := p.now()
	p.lingering = slices.DeleteFunc(p.lingering, func(l lingerer) bool { return !now.Before(l.until) })
	snap := xds.Snapshot{Clusters: resources(p.current.Clusters), Listeners: resources(p.current.Listeners)}
	for _, l := range p.lingering {
		r := xds.NewResource(l.resource.Name, l.resource.Body)
		if l.cluster {
			snap.Clusters = append(snap.Clusters, r)
		} else {
			snap.Listeners = append(snap.Listeners, r)
		}
	}
	return p.set(snap)
}

func resources(ms []mesh.Message) []xds.Resource {
	rs := make([]xds.Resource, len(ms))
	for i, m := range ms {
		rs[i] = xds.NewResource(m.Name, m.Body)
	}
	return rs
}

// nextExpiry fires when the first lingering resource has to go; nil when none lingers.
func (p *publisher) nextExpiry() <-chan time.Time {
	if len(p.lingering) == 0 {
		return nil
	}
	first := slices.MinFunc(p.lingering, func(a, b lingerer) int { return a.until.Compare(b.until) })
	return time.After(first.until.Sub(p.now()))
}

// errSuperseded ends the wait for a configuration that a newer one replaces.
var errSuperseded = errors.New("a newer configuration waits")

// await returns once Envoy uses version: it has taken it and nothing warms any
// more. It returns what Envoy refused of it; an error says that the wait was given up.
func (p *publisher) await(ctx context.Context, version uint64, changes <-chan *mesh.Registry) (*xds.RejectedError, error) {
	refused, err := p.awaitTaken(ctx, version, changes)
	if err != nil {
		return nil, err
	}
	p.log.Debug("Envoy has answered for the configuration", "version", version)
	for {
		asked := time.Now()
		clusters, listeners, err := p.warming(ctx)
		if err == nil && clusters == 0 && listeners == 0 {
			return refused, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(max(warmingPoll, pollShare*time.Since(asked))):
			if len(changes) > 0 {
				return nil, errSuperseded
			}
		}
	}
}

// awaitTaken returns once Envoy has answered for everything in version.
func (p *publisher) awaitTaken(ctx context.Context, version uint64, changes <-chan *mesh.Registry) (*xds.RejectedError, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, supersededPoll)
		err := p.applied(attempt, version)
		cancel()
		var rejected *xds.RejectedError
		switch {
		case err == nil:
			return nil, nil
		case errors.As(err, &rejected):
			return rejected, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case len(changes) > 0:
			return nil, errSuperseded
		case !errors.Is(err, context.DeadlineExceeded):
			return nil, err
		}
	}
}

// withoutRefused returns hosts without the addresses of those that Envoy has not got the
// resources of, and how many these are.
func withoutRefused(hosts []mesh.Host, resources []string) (left []mesh.Host, n int) {
	left = slices.Clone(hosts)
	for i, h := range left {
		if len(h.Addrs) > 0 && touches(resources, h) {
			left[i] = mesh.Host{Name: h.Name}
			n++
		}
	}
	return mesh.Owned(left), n
}

// touches tells whether the host's traffic needs one of the resources: a listener
// is named after its address, a cluster after its host.
func touches(resources []string, h mesh.Host) bool {
	return slices.ContainsFunc(resources, func(name string) bool {
		return strings.HasSuffix(name, "||"+h.Name) || slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool {
			return strings.HasPrefix(name, a.String()+"_")
		})
	})
}
