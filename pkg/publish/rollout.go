package publish

import (
	"maps"
	"slices"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/xds"
)

// Snapshot is a whole desired state: what Envoy is to use, and the names that lead there.
type Snapshot struct {
	Resources xds.Snapshot
	Hosts     []table.Host // each name once; Forwarded without an address
}

// rollout decides what Envoy is given and, with names, what DNS answers, and waits for nothing: time
// and Envoy's verdicts are told to it. What holds after each of its methods, once Envoy was given
// snapshot and DNS told change:
//
//   - DNS answers a host with an address only if Envoy used all resources of that host in some
//     version, and has been given every one of them ever since.
//   - An address that DNS no longer answers keeps its resources for the time keep.
//   - While another Envoy accepts as well, DNS answers nothing new that does not lead somewhere there too.
type rollout struct {
	names
	keep time.Duration // how long an answer lives

	wanted  *Snapshot // what the control plane says, or the generation before had
	reached bool      // Envoy uses wanted, but for what it refuses
	good    Snapshot  // what Envoy used of the configuration that it reached last
	// standIns are earlier versions, which Envoy took, of what it refuses and has in no version:
	// it was started anew, or is another release.
	standIns map[xds.ID]*xds.Stored
	delayed  []delayedRemoval
	// elsewhere is what leads somewhere in another Envoy that accepts as well; nil: there is none.
	elsewhere *addresses
}

// delayedRemoval is a resource that Envoy used and that is not wanted any more, kept while clients
// may still hold an answer that leads to it. One that is wanted again stays until Envoy uses it.
type delayedRemoval struct {
	id       xds.ID
	shared   bool        // it belongs to no host in particular
	resource *xds.Stored // in the version that Envoy used
	until    time.Time   // zero while DNS gives such answers
}

// seed makes snap, of the generation before, what the first snapshot is a change of.
func (r *rollout) seed(snap *Snapshot) {
	hosts := byName(snap.Hosts)
	r.wanted, r.good = snap, *snap
	r.names = names{hosts: hosts, answered: hosts}
}

// want makes snap what is to come into force. Hosts that it does not have lose their names now.
func (r *rollout) want(snap *Snapshot, now time.Time) {
	r.names.want(byName(snap.Hosts))
	r.delayRemovals(snap)
	r.wanted, r.reached, r.standIns = snap, false, nil
	r.startTimers(now)
}

// applied notes that Envoy uses what it was given last, but for what it refuses. A host that
// needs what Envoy lacks keeps the answer that it had, if that still leads somewhere: it needs only
// what Envoy had before, or what is delayed.
func (r *rollout) applied(refused *xds.RejectedError, now time.Time) {
	used, lacks := r.wanted.Resources, map[xds.ID]bool(nil)
	if refused != nil {
		used, lacks = r.used(refused)
	}
	needed, earlier := make(map[string]bool), make(map[string]bool)
	each(r.wanted.Resources, lacks, func(id xds.ID, _ *xds.Stored) { needed[owner(id.Name)] = true })
	for id := range r.versions(lacks) {
		earlier[owner(id.Name)] = true
	}
	if r.elsewhere != nil {
		for _, h := range r.wanted.Hosts {
			r.elsewhere.lack(h, needed, earlier)
		}
	}
	r.release(needed, earlier)
	r.good, r.reached = Snapshot{Resources: used, Hosts: r.wanted.Hosts}, true
	r.dropReturned()
	r.startTimers(now)
}

// used is what Envoy uses of the wanted resources: of those that it refuses the earlier version
// that it had before, if it kept one. Of a resource that it lacks there is none, or one of a
// configuration that was given up on the way, which nobody can give it again.
func (r *rollout) used(refused *xds.RejectedError) (used xds.Snapshot, lacks map[xds.ID]bool) {
	refuses := setOf(refused.Resources)
	earlier := r.versions(refuses)
	lacks, used = setOf(refused.Missing()), make(xds.Snapshot, len(r.wanted.Resources))
	for url, wanted := range r.wanted.Resources {
		var out []*xds.Stored
		for _, m := range wanted {
			if id := (xds.ID{Type: url, Name: m.Name}); refuses[id] {
				version, known := earlier[id]
				if !known {
					lacks[id] = true
				}
				if lacks[id] {
					continue
				}
				m = version
			}
			out = append(out, m)
		}
		used[url] = out
	}
	return used, lacks
}

// versions are those resources of ids that Envoy had before, or whose removal is delayed.
func (r *rollout) versions(ids map[xds.ID]bool) map[xds.ID]*xds.Stored {
	versions := make(map[xds.ID]*xds.Stored)
	for _, l := range r.delayed {
		if ids[l.id] {
			versions[l.id] = l.resource
		}
	}
	each(r.good.Resources, ids, func(id xds.ID, m *xds.Stored) { versions[id] = m })
	return versions
}

// standIn puts earlier versions in the place of what is missing, and says whether it had any.
func (r *rollout) standIn(missing []xds.ID) bool {
	lacks := setOf(missing)
	r.standIns = r.versions(lacks)
	each(r.wanted.Resources, lacks, func(id xds.ID, m *xds.Stored) {
		if m.Equal(r.standIns[id]) {
			delete(r.standIns, id) // it is what Envoy refuses
		}
	})
	return len(r.standIns) > 0
}

// each visits those resources that are among ids.
func each(resources xds.Snapshot, ids map[xds.ID]bool, visit func(xds.ID, *xds.Stored)) {
	for url, list := range resources {
		for _, m := range list {
			if id := (xds.ID{Type: url, Name: m.Name}); ids[id] {
				visit(id, m)
			}
		}
	}
}

// snapshot is what Envoy is to have now: what is wanted, and what is kept for a while.
func (r *rollout) snapshot(now time.Time) xds.Snapshot {
	r.delayed = slices.DeleteFunc(r.delayed, func(l delayedRemoval) bool { return !l.until.IsZero() && !now.Before(l.until) })
	snap := r.withDelayed(r.wanted.Resources)
	if len(r.standIns) == 0 {
		return snap
	}
	for url, list := range snap {
		snap[url] = slices.Clone(list)
		for i, m := range list {
			if s, ok := r.standIns[xds.ID{Type: url, Name: m.Name}]; ok {
				snap[url][i] = s
			}
		}
	}
	return snap
}

// withDelayed adds to resources what is delayed and has no version among them.
func (r *rollout) withDelayed(resources xds.Snapshot) xds.Snapshot {
	out := maps.Clone(resources)
	names := map[string]map[string]bool{}
	for _, l := range r.delayed {
		url := l.id.Type
		if names[url] == nil {
			names[url] = namesOf(resources[url])
			out[url] = slices.Clip(out[url]) // the first addition copies it
		}
		if !names[url][l.id.Name] {
			out[url] = append(out[url], l.resource)
		}
	}
	return out
}

// inForce is what a successor is to start with: all that Envoy uses, what is delayed included, and
// the names that DNS answers.
func (r *rollout) inForce() *Snapshot {
	return &Snapshot{Resources: r.withDelayed(r.good.Resources), Hosts: r.answered}
}

// expiry is when the first delayed resource has to go; zero when none has to yet.
func (r *rollout) expiry() (first time.Time) {
	for _, l := range r.delayed {
		if !l.until.IsZero() && (first.IsZero() || l.until.Before(first)) {
			first = l.until
		}
	}
	return first
}

// delayRemovals keeps what Envoy used and snap does not have.
func (r *rollout) delayRemovals(snap *Snapshot) {
	var hosts map[string]bool // mostly nothing goes, and nobody wants to know
	for url, used := range r.good.Resources {
		names := namesOf(snap.Resources[url])
		for _, l := range r.delayed {
			if l.id.Type == url {
				names[l.id.Name] = true
			}
		}
		for _, m := range used {
			if !names[m.Name] {
				if hosts == nil {
					hosts = ownersOf(r.good.Hosts)
				}
				r.delayed = append(r.delayed, delayedRemoval{id: xds.ID{Type: url, Name: m.Name}, shared: !hosts[owner(m.Name)], resource: m})
			}
		}
	}
}

// dropReturned ends the delay of what Envoy uses, being wanted again.
func (r *rollout) dropReturned() {
	if len(r.delayed) == 0 {
		return
	}
	for url, list := range r.good.Resources {
		uses := namesOf(list)
		r.delayed = slices.DeleteFunc(r.delayed, func(l delayedRemoval) bool { return l.id.Type == url && uses[l.id.Name] })
	}
}

func namesOf(list []*xds.Stored) map[string]bool {
	names := make(map[string]bool, len(list))
	for _, m := range list {
		names[m.Name] = true
	}
	return names
}

// startTimers sets the clocks of what is delayed and leads nowhere that DNS still sends anybody. Until
// Envoy uses what is wanted, every answer may need what is not wanted any more; afterwards only
// those that are behind do. A clock that runs is not stopped: Envoy has used a configuration
// without that resource, in which every answer leads somewhere.
func (r *rollout) startTimers(now time.Time) {
	if len(r.delayed) == 0 {
		return
	}
	inUse := r.answered
	if r.reached {
		inUse = r.behind
	}
	owners := ownersOf(inUse)
	for i := range r.delayed {
		l := &r.delayed[i]
		if l.until.IsZero() && !owners[owner(l.id.Name)] && (r.reached || !l.shared) {
			l.until = now.Add(r.keep)
		}
	}
}

func setOf(ids []xds.ID) map[xds.ID]bool {
	set := make(map[xds.ID]bool, len(ids))
	for _, id := range ids {
		set[id] = true
	}
	return set
}
