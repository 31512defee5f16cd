package publish

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/xds"
)

// rollout decides what Envoy is given and what DNS answers, and waits for nothing: time and
// Envoy's verdicts are told to it. What holds after each of its methods, once Envoy was given
// snapshot and DNS told answered:
//
//   - DNS answers a host with an address only if Envoy used all resources of that host in some
//     version, and has been given every one of them ever since.
//   - An address that DNS no longer answers keeps its resources for the time keep.
type rollout struct {
	keep time.Duration // how long an answer lives

	wanted   *build.Output // what the files say, or the generation before had
	reached  bool          // Envoy uses wanted, but for what it refuses
	good     *build.Output // what Envoy used of the configuration that it reached last
	answered []mesh.Host   // what DNS answers, sorted by name; at first what the generation before does
	behind   []mesh.Host   // those of answered that have the answer of an earlier configuration
	// standIns are earlier versions, which Envoy took, of what it refuses and has in no version:
	// it was started anew, or is another release.
	standIns  map[string]build.Message
	lingering []lingerer
}

// lingerer is a resource that Envoy used and that is not wanted any more, kept while clients
// may still hold an answer that leads to it. One that is wanted again stays until Envoy uses it.
type lingerer struct {
	cluster  bool
	shared   bool          // it belongs to no host in particular
	resource build.Message // in the version that Envoy used
	until    time.Time     // zero while DNS gives such answers
}

// seed makes out, of the generation before, what the first output is a change of.
func (r *rollout) seed(out *build.Output) {
	r.wanted, r.good, r.answered = out, out, byName(out.Hosts)
}

// want makes out what is to come into force. Hosts that it does not have lose their names now.
func (r *rollout) want(out *build.Output, now time.Time) {
	out.Hosts = byName(out.Hosts)
	if r.wanted != nil {
		r.answered = retained(r.answered, out.Hosts)
		r.linger(out)
	}
	r.wanted, r.reached, r.standIns = out, false, nil
	r.wind(now)
}

// settle notes that Envoy uses what it was given last, but for what it refuses. A host that
// needs what Envoy lacks keeps the answer that it had, if that still leads somewhere.
func (r *rollout) settle(refused *xds.RejectedError, now time.Time) {
	before, used, lacks := r.good, r.wanted, map[string]bool(nil)
	if refused != nil {
		used, lacks = r.used(refused, before)
	}
	if len(lacks) > 0 {
		r.answered, r.behind = r.routable(lacks, before)
	} else {
		r.answered, r.behind = r.wanted.Hosts, nil
	}
	r.good, r.reached = used, true
	r.dropReturned()
	r.wind(now)
}

// routable returns the wanted hosts that need nothing of what Envoy lacks, and, behind, those that do,
// with the answer that they had: it needs only what Envoy had before, or what lingers.
func (r *rollout) routable(lacks map[string]bool, before *build.Output) (hosts, behind []mesh.Host) {
	needed, earlier := make(map[string]bool), make(map[string]bool)
	each(r.wanted, lacks, func(m build.Message) { needed[owner(m.Name)] = true })
	each(before, lacks, func(m build.Message) { earlier[owner(m.Name)] = true })
	for _, l := range r.lingering {
		if lacks[l.resource.Name] {
			earlier[owner(l.resource.Name)] = true
		}
	}
	old := r.answered
	for _, h := range r.wanted.Hosts {
		for len(old) > 0 && old[0].Name < h.Name {
			old = old[1:]
		}
		switch {
		case len(h.Addrs) == 0 || !touches(needed, h):
			hosts = append(hosts, h)
		case len(old) > 0 && old[0].Name == h.Name && !touches(earlier, old[0]):
			hosts, behind = append(hosts, old[0]), append(behind, old[0])
		default: // no wildcard answers for it
			hosts = append(hosts, mesh.Host{Name: h.Name})
		}
	}
	return mesh.Owned(hosts), behind
}

// used is what Envoy uses of the wanted resources: of those that it refuses the earlier version
// that it had before, if it kept one. Of a resource that it lacks there is none, or one of a
// configuration that was given up on the way, which nobody can give it again.
func (r *rollout) used(refused *xds.RejectedError, before *build.Output) (out *build.Output, lacks map[string]bool) {
	refuses, kept := setOf(refused.Resources), setOf(refused.Kept)
	earlier := r.versions(refuses, before)
	lacks = make(map[string]bool)
	filter := func(wanted []build.Message) (out []build.Message) {
		for _, m := range wanted {
			if refuses[m.Name] {
				version, known := earlier[m.Name]
				if lacks[m.Name] = !known || !kept[m.Name]; lacks[m.Name] {
					continue
				}
				m = version
			}
			out = append(out, m)
		}
		return out
	}
	out = &build.Output{Clusters: filter(r.wanted.Clusters), Listeners: filter(r.wanted.Listeners), Hosts: r.wanted.Hosts}
	for name := range refuses {
		if !kept[name] {
			lacks[name] = true // of what lingers, too
		}
	}
	maps.DeleteFunc(lacks, func(_ string, lacks bool) bool { return !lacks })
	return out, lacks
}

// versions are the resources of names that Envoy had before, or that linger.
func (r *rollout) versions(names map[string]bool, before *build.Output) map[string]build.Message {
	versions := make(map[string]build.Message)
	for _, l := range r.lingering {
		if names[l.resource.Name] {
			versions[l.resource.Name] = l.resource
		}
	}
	each(before, names, func(m build.Message) { versions[m.Name] = m })
	return versions
}

// standIn puts earlier versions in the place of what is missing, and says whether it had any.
func (r *rollout) standIn(missing []string) bool {
	lacks := setOf(missing)
	r.standIns = r.versions(lacks, r.good)
	each(r.wanted, lacks, func(m build.Message) {
		if bytes.Equal(r.standIns[m.Name].Body, m.Body) {
			delete(r.standIns, m.Name) // it is what Envoy refuses
		}
	})
	return len(r.standIns) > 0
}

// each visits the resources of out, which may be nil, that have one of names.
func each(out *build.Output, names map[string]bool, visit func(build.Message)) {
	if out == nil {
		return
	}
	for _, list := range [][]build.Message{out.Clusters, out.Listeners} {
		for _, m := range list {
			if names[m.Name] {
				visit(m)
			}
		}
	}
}

// snapshot is what Envoy is to have now: what is wanted, and what lingers.
func (r *rollout) snapshot(now time.Time) xds.Snapshot {
	r.lingering = slices.DeleteFunc(r.lingering, func(l lingerer) bool { return !l.until.IsZero() && !now.Before(l.until) })
	resources := func(cluster bool, wanted []build.Message) []xds.Resource {
		rs := make([]xds.Resource, 0, len(wanted)+len(r.lingering))
		for _, m := range wanted {
			if s, ok := r.standIns[m.Name]; ok {
				m = s
			}
			rs = append(rs, xds.NewResource(m.Name, m.Body))
		}
		for _, m := range r.unwanted(cluster, wanted) {
			rs = append(rs, xds.NewResource(m.Name, m.Body))
		}
		return rs
	}
	return xds.Snapshot{build.ClusterType: resources(true, r.wanted.Clusters), build.ListenerType: resources(false, r.wanted.Listeners)}
}

// unwanted returns the clusters, or the listeners, that linger and have no version in wanted.
func (r *rollout) unwanted(cluster bool, wanted []build.Message) (out []build.Message) {
	if len(r.lingering) == 0 {
		return nil
	}
	names := namesOf(wanted)
	for _, l := range r.lingering {
		if l.cluster == cluster && !names[l.resource.Name] {
			out = append(out, l.resource)
		}
	}
	return out
}

// inForce is what a successor is to start with: all that Envoy uses, what lingers included, and
// the names that DNS answers.
func (r *rollout) inForce() *build.Output {
	return &build.Output{
		Clusters:  slices.Concat(r.good.Clusters, r.unwanted(true, r.good.Clusters)),
		Listeners: slices.Concat(r.good.Listeners, r.unwanted(false, r.good.Listeners)),
		Hosts:     r.answered,
	}
}

// expiry is when the first lingering resource has to go; zero when none has to yet.
func (r *rollout) expiry() (first time.Time) {
	for _, l := range r.lingering {
		if !l.until.IsZero() && (first.IsZero() || l.until.Before(first)) {
			first = l.until
		}
	}
	return first
}

// linger keeps what Envoy used and out does not have.
func (r *rollout) linger(out *build.Output) {
	if r.good == nil {
		return // nothing was ever answered
	}
	hosts := ownersOf(r.good.Hosts)
	keep := func(cluster bool, used, wanted []build.Message) {
		names := namesOf(wanted)
		for _, l := range r.lingering {
			if l.cluster == cluster {
				names[l.resource.Name] = true
			}
		}
		for _, m := range used {
			if !names[m.Name] {
				r.lingering = append(r.lingering, lingerer{cluster: cluster, shared: !hosts[owner(m.Name)], resource: m})
			}
		}
	}
	keep(true, r.good.Clusters, out.Clusters)
	keep(false, r.good.Listeners, out.Listeners)
}

// dropReturned ends the lingering of what Envoy uses, being wanted again.
func (r *rollout) dropReturned() {
	if len(r.lingering) == 0 {
		return
	}
	clusters, listeners := namesOf(r.good.Clusters), namesOf(r.good.Listeners)
	r.lingering = slices.DeleteFunc(r.lingering, func(l lingerer) bool {
		if l.cluster {
			return clusters[l.resource.Name]
		}
		return listeners[l.resource.Name]
	})
}

func namesOf(list []build.Message) map[string]bool {
	names := make(map[string]bool, len(list))
	for _, m := range list {
		names[m.Name] = true
	}
	return names
}

// wind sets the clocks of what lingers and leads nowhere that DNS still sends anybody. Until
// Envoy uses what is wanted, every answer may need what is not wanted any more; afterwards only
// those that are behind do. A clock that runs is not stopped: Envoy has used a configuration
// without that resource, in which every answer leads somewhere.
func (r *rollout) wind(now time.Time) {
	if len(r.lingering) == 0 {
		return
	}
	inUse := r.answered
	if r.reached {
		inUse = r.behind
	}
	owners := ownersOf(inUse)
	for i := range r.lingering {
		l := &r.lingering[i]
		if l.until.IsZero() && !owners[owner(l.resource.Name)] && (r.reached || !l.shared) {
			l.until = now.Add(r.keep)
		}
	}
}

// retained returns the hosts of old that are still wanted, as they were.
func retained(old, wanted []mesh.Host) []mesh.Host {
	names := make(map[string]bool, len(wanted))
	for _, h := range wanted {
		names[h.Name] = true
	}
	return slices.DeleteFunc(slices.Clone(old), func(h mesh.Host) bool { return !names[h.Name] })
}

// byName returns hosts sorted by name.
func byName(hosts []mesh.Host) []mesh.Host {
	compare := func(a, b mesh.Host) int { return strings.Compare(a.Name, b.Name) }
	if slices.IsSortedFunc(hosts, compare) { // all but what is inherited from who knows which release
		return hosts
	}
	return slices.SortedFunc(slices.Values(hosts), compare)
}

// owner is what a resource is for: the host of a cluster, the address of a listener.
func owner(resource string) string {
	if i := strings.LastIndex(resource, "||"); i >= 0 {
		return resource[i+len("||"):]
	}
	if i := strings.LastIndexByte(resource, '_'); i >= 0 {
		return resource[:i]
	}
	return resource
}

// ownersOf has all that owner may say of the resources of hosts.
func ownersOf(hosts []mesh.Host) map[string]bool {
	owners := make(map[string]bool, 2*len(hosts))
	for _, h := range hosts {
		owners[h.Name] = true
		for _, a := range h.Addrs {
			owners[a.String()] = true
		}
	}
	return owners
}

// touches tells whether the host's traffic needs a resource of one of the owners.
func touches(owners map[string]bool, h mesh.Host) bool {
	return owners[h.Name] || slices.ContainsFunc(h.Addrs, func(a netip.Addr) bool { return owners[a.String()] })
}

func setOf(names []string) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, name := range names {
		set[name] = true
	}
	return set
}
