package publish

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/xds"
)

// one is a rollout with a clock.
type one struct {
	*rollout
	now time.Time
}

const keepForTest = 30 * time.Second

func newOne() *one { return &one{&rollout{keep: keepForTest}, time.Unix(1e9, 0)} }

func (o *one) wants(snap *Snapshot)            { o.want(snap, o.now) }
func (o *one) uses(refused *xds.RejectedError) { o.applied(refused, o.now) }

// words are the resources by type, each with its body.
func words(resources xds.Snapshot) string {
	var all []string
	for _, url := range slices.Sorted(maps.Keys(resources)) {
		for _, m := range resources[url] {
			all = append(all, m.Name+"="+string(bodyOf(m)))
		}
	}
	return strings.Join(all, " ")
}

// answers are the hosts that DNS answers, with their addresses.
func answers(hosts []table.Host) string {
	var all []string
	for _, h := range hosts {
		word := h.Name
		for _, a := range h.Addrs {
			word += "=" + a.String()
		}
		all = append(all, word)
	}
	return strings.Join(all, " ")
}

// says has the listeners "name=body" and the hosts "name=address".
func says(listeners, hosts string) *Snapshot {
	snap := &Snapshot{Resources: xds.Snapshot{listenerType: nil}}
	for _, word := range strings.Fields(listeners) {
		name, body, _ := strings.Cut(word, "=")
		snap.Resources[listenerType] = append(snap.Resources[listenerType], xds.NewStored(name, []byte(body)))
	}
	for _, word := range strings.Fields(hosts) {
		name, addr, _ := strings.Cut(word, "=")
		snap.Hosts = append(snap.Hosts, table.Host{Name: name, Addrs: []netip.Addr{netip.MustParseAddr(addr)}})
	}
	return snap
}

// refuses is a refusal of listeners, or of the clusters that have an Istio name.
func refuses(names ...string) *xds.RejectedError {
	refused := &xds.RejectedError{}
	for _, name := range names {
		id := xds.ID{Type: listenerType, Name: name}
		if strings.Contains(name, "||") {
			id.Type = clusterType
		}
		refused.Resources = append(refused.Resources, id)
	}
	return refused
}

// keeps is a refusal of changes: Envoy has an earlier version of each.
func keeps(names ...string) *xds.RejectedError {
	refused := refuses(names...)
	refused.Kept = refused.Resources
	return refused
}

// because is a refusal with Envoy's reason.
func because(reason string, names ...string) *xds.RejectedError {
	refused := refuses(names...)
	refused.Reasons = []string{reason}
	return refused
}

// with adds the clusters "name=body" to a snapshot.
func with(clusters string, snap *Snapshot) *Snapshot {
	snap.Resources[clusterType] = says(clusters, "").Resources[listenerType]
	return snap
}

// TestRolloutSteps looks, after a few steps, at what Envoy is given, what DNS answers and what a
// successor would start with.
func TestRolloutSteps(t *testing.T) {
	const a, b, shared = "10.0.0.1_80", "10.0.0.2_80", "outbound|80||name"
	both, hosts := a+"=1 "+b+"=1", "a=10.0.0.1 b=10.0.0.2"
	for name, tc := range map[string]struct {
		play                     func(o *one)
		given, answered, inForce string
	}{
		"inherited": {func(o *one) {
			o.seed(says(both, "b=10.0.0.2 a=10.0.0.1"))
		}, both, hosts, both},
		"a change of what is inherited": {func(o *one) {
			o.seed(says(both, "b=10.0.0.2 a=10.0.0.1"))
			o.wants(says(b+"=1", "b=10.0.0.2"))
		}, b + "=1 " + a + "=1", "b=10.0.0.2", both},
		"what is inherited comes into force": {func(o *one) {
			o.seed(says(both, "b=10.0.0.2 a=10.0.0.1"))
			o.uses(nil)
		}, both, hosts, both},
		"hosts in no order": {func(o *one) {
			o.wants(says(both, "b=10.0.0.2 a=10.0.0.1"))
			o.uses(nil)
		}, both, hosts, both},
		"an answer goes when Envoy lacks what is delayed": {func(o *one) {
			o.wants(says(a+"=1", "a=10.0.0.1"))
			o.uses(nil)
			o.wants(says(b+"=1", "a=10.0.0.2"))
			o.uses(refuses(b))
			o.wants(says(b+"=1", "a=10.0.0.2"))
			o.uses(refuses(b, a)) // it is a new one
		}, b + "=1 " + a + "=1", "", a + "=1"},
		"shared resources wait until Envoy uses what is wanted": {func(o *one) {
			o.wants(says("virtual_1=1 "+a+"=1", "a=10.0.0.1"))
			o.uses(nil)
			o.wants(says(b+"=1", "b=10.0.0.2"))
			o.now = o.now.Add(keepForTest)
		}, b + "=1 virtual_1=1", "", "virtual_1=1 " + a + "=1"},
		"shared resources go then": {func(o *one) {
			o.wants(says("virtual_1=1 "+a+"=1", "a=10.0.0.1"))
			o.uses(nil)
			o.wants(says(b+"=1", "b=10.0.0.2"))
			o.uses(nil)
			o.now = o.now.Add(keepForTest)
		}, b + "=1", "b=10.0.0.2", b + "=1"},
		"a clock that runs is not set again": {func(o *one) {
			o.wants(says(both, hosts))
			o.uses(nil)
			o.wants(says(b+"=1", "b=10.0.0.2"))
			o.now = o.now.Add(keepForTest / 2)
			o.uses(nil)
			o.now = o.now.Add(keepForTest / 2)
		}, b + "=1", "b=10.0.0.2", b + "=1"},
		"a removal is delayed once": {func(o *one) {
			o.wants(says(both, hosts))
			o.uses(nil)
			o.wants(says(b+"=1", "b=10.0.0.2"))
			o.now = o.now.Add(keepForTest / 2)
			o.wants(says(b+"=2", "b=10.0.0.2"))
			o.now = o.now.Add(keepForTest / 2)
		}, b + "=2", "b=10.0.0.2", both},
		"what is wanted again comes once, in its new version": {func(o *one) {
			o.wants(says(both, hosts))
			o.uses(nil)
			o.wants(says(b+"=1", "b=10.0.0.2"))
			o.wants(says(a+"=2 "+b+"=1", hosts))
		}, a + "=2 " + b + "=1", "b=10.0.0.2", both},
		"an earlier version is for one configuration": {func(o *one) {
			o.wants(says(a+"=1", "a=10.0.0.1"))
			o.uses(nil)
			o.wants(says(a+"=2", "a=10.0.0.1"))
			o.standIn(refuses(a).Resources)
			o.wants(says(a+"=3", "a=10.0.0.1"))
		}, a + "=3", "a=10.0.0.1", a + "=1"},
		"Envoy keeps what it had of a configuration that was given up": {func(o *one) {
			o.wants(says(a+"=1", "a=10.0.0.1"))
			o.wants(says(a+"=2", "a=10.0.0.1"))
			o.uses(keeps(a))
		}, a + "=2", "", ""},
		"a refused cluster is not the listener of its name": {func(o *one) {
			o.wants(with(shared+"=c1", says(shared+"=l1", "")))
			o.uses(nil)
			o.wants(with(shared+"=c2", says(shared+"=l2", "")))
			o.uses(keeps(shared))
		}, shared + "=c2 " + shared + "=l2", "", shared + "=c1 " + shared + "=l2"},
		"an earlier version stands in for one of its type": {func(o *one) {
			o.wants(with(shared+"=c1", says(shared+"=l1", "")))
			o.uses(nil)
			o.wants(with(shared+"=c2", says(shared+"=l2", "")))
			o.standIn(refuses(shared).Resources)
		}, shared + "=c1 " + shared + "=l2", "", shared + "=c1 " + shared + "=l1"},
		"two types share a name": {func(o *one) {
			o.wants(with("x=c", says("x=l", "")))
			o.uses(nil)
			o.wants(says("x=l", "")) // the cluster goes
			o.uses(nil)
			o.wants(says("", "")) // the listener, too
		}, "x=c x=l", "", "x=c x=l"},
		"what a new Envoy lacks is not kept for it": {func(o *one) {
			o.wants(says(a+"=1", "a=10.0.0.1"))
			o.uses(nil)
			o.wants(says(a+"=2", "a=10.0.0.1"))
			o.uses(refuses(a))
			o.wants(says("", ""))
		}, "", "", ""},
		"a host that keeps its answer keeps its cluster": {func(o *one) {
			o.wants(with("outbound|80||a=1", says(a+"=1", "a=10.0.0.1")))
			o.uses(nil)
			o.wants(with("outbound|81||a=1", says(b+"=1", "a=10.0.0.2")))
			o.uses(refuses(b))
			o.now = o.now.Add(keepForTest)
		}, "outbound|81||a=1 outbound|80||a=1 " + b + "=1 " + a + "=1", "a=10.0.0.1", "outbound|81||a=1 outbound|80||a=1 " + a + "=1"},
		"it keeps it no longer than its answer": {func(o *one) {
			o.wants(with("outbound|80||a=1", says(a+"=1", "a=10.0.0.1")))
			o.uses(nil)
			o.wants(with("outbound|81||a=1", says(b+"=1", "a=10.0.0.2")))
			o.uses(refuses(b))
			o.uses(nil)
			o.now = o.now.Add(keepForTest)
		}, "outbound|81||a=1 " + b + "=1", "a=10.0.0.2", "outbound|81||a=1 " + b + "=1"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOne()
			tc.play(o)
			if got := words(o.snapshot(o.now)); got != tc.given {
				t.Errorf("Envoy is given %q, want %q", got, tc.given)
			}
			if got := answers(o.answered); got != tc.answered {
				t.Errorf("DNS answers %q, want %q", got, tc.answered)
			}
			inForce := o.inForce()
			if got := words(inForce.Resources); got != tc.inForce || answers(inForce.Hosts) != tc.answered {
				t.Errorf("in force is %q with the hosts %v, want %q, %q", got, inForce.Hosts, tc.inForce, tc.answered)
			}
		})
	}
}

// TestWantedStaysAsItIs: what Envoy is given for now changes nothing of the snapshot that is wanted, which is given
// again once Envoy may take it.
func TestWantedStaysAsItIs(t *testing.T) {
	const a, b = "10.0.0.1_80", "10.0.0.2_80"
	for name, tc := range map[string]struct{ before, given string }{
		"an earlier version stands in": {a + "=1", a + "=1"},
		"a removal is delayed":         {a + "=1 " + b + "=1", a + "=1 " + b + "=1"},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOne()
			o.wants(says(tc.before, ""))
			o.uses(nil)
			wanted := says(a+"=2", "")
			list := slices.Grow(wanted.Resources[listenerType], 1)
			wanted.Resources[listenerType] = list
			o.wants(wanted)
			o.standIn(refuses(a).Resources)
			if got := words(o.snapshot(o.now)); got != tc.given {
				t.Errorf("Envoy is given %q, want %q", got, tc.given)
			}
			if got, behind := words(wanted.Resources), list[:2][1]; got != a+"=2" || behind != nil {
				t.Errorf("the snapshot has become %q, with %v behind it", got, behind)
			}
		})
	}
}

// TestExpiry: a removed resource goes in its time, whichever was removed before.
func TestExpiry(t *testing.T) {
	const a, b, c = "10.0.0.1_80", "10.0.0.2_80", "10.0.0.3_80"
	o := newOne()
	o.wants(says(a+"=1 "+b+"=1 "+c+"=1", "a=10.0.0.1 b=10.0.0.2 c=10.0.0.3"))
	o.uses(nil)
	first := o.now.Add(keepForTest)
	o.wants(says("10.0.0.4_80=1 10.0.0.5_80=1", "a=10.0.0.4 c=10.0.0.5")) // b is not answered from here on
	if got := o.expiry(); !got.Equal(first) {
		t.Errorf("the first goes at %v, want %v", got, first)
	}
	o.now = o.now.Add(keepForTest / 3)
	o.uses(nil) // a and c have other answers from here on
	if got := o.expiry(); !got.Equal(first) {
		t.Errorf("with later ones before and behind it, the first goes at %v, want %v", got, first)
	}
	o.now = first
	o.snapshot(o.now)
	if got, want := o.expiry(), first.Add(keepForTest/3); !got.Equal(want) {
		t.Errorf("the next go at %v, want %v", got, want)
	}
	o.now = o.now.Add(keepForTest)
	o.snapshot(o.now)
	if got := o.expiry(); !got.IsZero() {
		t.Errorf("nothing is kept, and something goes at %v", got)
	}
}
