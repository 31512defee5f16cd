package publish

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/xds"
)

// FuzzRollout lets changes, Envoy's progress, its refusals, its death and time come in any order,
// and looks at what holds: an address that was answered within its TTL has a listener, and that
// has its cluster.
func FuzzRollout(f *testing.F) {
	for seed := range uint64(16) {
		f.Add(rolloutSteps(seed))
	}
	f.Fuzz(func(t *testing.T, steps []byte) { playRollout(t, steps[:min(len(steps), 4096)]) })
}

// TestRollouts is as much of FuzzRollout as a commit needs.
func TestRollouts(t *testing.T) {
	for seed := range uint64(100) {
		if playRollout(t, rolloutSteps(seed)); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func rolloutSteps(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	steps := make([]byte, 1500)
	for i := range steps {
		steps[i] = byte(random.Uint32())
	}
	return steps
}

// theatre is a rollout with an Envoy and a DNS on paper.
type theatre struct {
	*rollout
	t     *testing.T
	steps []byte
	now   time.Time
	log   []string

	given   xds.Snapshot // last
	version int
	envoy   paperEnvoy
	told    map[netip.Addr]time.Time // when DNS answered with an address last
	named   map[string]bool
	fresh   bool               // a new Envoy, which has not answered for a configuration yet
	taken   int                // the version that settle was told of
	first   *xds.RejectedError // what it refused before it was given earlier versions
}

func playRollout(t *testing.T, steps []byte) {
	const ttl = 30 * time.Second
	th := &theatre{
		rollout: &rollout{keep: ttl}, t: t, steps: steps, now: time.Unix(1e9, 0),
		envoy: newPaperEnvoy(), told: map[netip.Addr]time.Time{},
	}
	th.change()
	for len(th.steps) > 0 && !t.Failed() {
		switch th.pick(12) {
		case 0:
			th.change()
		case 1:
			th.pass(time.Duration(th.pick(40)) * time.Second)
		case 2:
			if th.pick(8) == 0 {
				th.note("Envoy starts anew")
				th.envoy, th.fresh, th.taken = newPaperEnvoy(), true, 0
				th.retry()
			}
		case 3:
			th.retry()
		default:
			th.envoy.step(th.given, th.version)
			th.verdict()
		}
		th.check(ttl)
	}
}

// pick takes the next step.
func (th *theatre) pick(n int) int {
	if len(th.steps) == 0 {
		return 0
	}
	b := th.steps[0]
	th.steps = th.steps[1:]
	return int(b) % n
}

func (th *theatre) note(format string, args ...any) {
	th.log = append(th.log, fmt.Sprintf("%s: %s", th.now.Format("15:04:05"), fmt.Sprintf(format, args...)))
}

// change: the files say something else, of up to four hosts with one or two ports. A body with
// "bad" in it is one that Envoy refuses.
func (th *theatre) change() {
	out := &Snapshot{Resources: xds.Snapshot{}}
	message := func(name, leadsTo string) *xds.Stored {
		v := th.pick(24)
		if v < 3 {
			leadsTo += " bad"
		}
		return xds.NewStored(name, fmt.Appendf(nil, "%d %s", v, leadsTo))
	}
	for i, name := range []string{"a", "b", "c", "d"} {
		if th.pick(4) == 0 {
			continue
		}
		addr := netip.AddrFrom4([4]byte{10, 0, byte(i), byte(1 + th.pick(3))})
		for port := range 1 + th.pick(2) {
			cluster := fmt.Sprintf("outbound|%d||%s", 80+port, name)
			out.Resources[clusterType] = append(out.Resources[clusterType], message(cluster, ""))
			out.Resources[listenerType] = append(out.Resources[listenerType], message(fmt.Sprintf("%s_%d", addr, 80+port), cluster))
		}
		out.Hosts = append(out.Hosts, table.Host{Name: name, Addrs: []netip.Addr{addr}})
	}
	th.note("change to %s", strings.Join(describeOutput(out), ", "))
	th.first = nil
	th.want(out, th.now)
	th.tell()
	th.send()
}

func describeOutput(out *Snapshot) (words []string) {
	for _, list := range [][]*xds.Stored{out.Resources[clusterType], out.Resources[listenerType]} {
		for _, m := range list {
			words = append(words, fmt.Sprintf("%s=%q", m.Name, bodyOf(m)))
		}
	}
	return words
}

// send is publisher.send.
func (th *theatre) send() {
	th.given = th.snapshot(th.now)
	th.version++
	th.note("Envoy is given version %d: %d clusters, %d listeners", th.version, len(th.given[clusterType]), len(th.given[listenerType]))
}

// retry is what publisher.bring begins with.
func (th *theatre) retry() {
	th.standIns, th.first = nil, nil
	th.send()
}

// pass lets time go, but for what is due in it.
func (th *theatre) pass(d time.Duration) {
	end := th.now.Add(d)
	for due := th.expiry(); !due.IsZero() && !due.After(end); due = th.expiry() {
		if due.After(th.now) {
			th.tell()
			th.now = due
			th.tell()
		}
		th.send()
	}
	th.now = end
	th.tell()
}

// tell gives DNS the answers, which it gives to its clients at once.
func (th *theatre) tell() {
	named := map[string]bool{}
	for _, h := range th.answered {
		named[h.Name] = true
		for _, a := range h.Addrs {
			th.told[a] = th.now
		}
	}
	if !maps.Equal(named, th.named) {
		th.note("DNS answers %v", slices.Sorted(maps.Keys(named)))
	}
	th.named = named
}

// verdict is what publisher.bring does with Envoy's answer for what it was given last.
func (th *theatre) verdict() {
	if th.envoy.done != th.version || th.taken == th.version {
		return
	}
	refused := th.envoy.verdict(th.given)
	if refused != nil && th.first == nil && th.standIn(refused.Missing()) {
		th.note("earlier versions in the place of %v", refused.Missing())
		th.first = refused
		th.send()
		return
	}
	if th.first != nil {
		refused = together(th.first, refused)
		th.first = nil
	}
	if refused != nil {
		th.note("Envoy refuses %v and has %v of these", refused.Resources, refused.Kept)
	}
	th.applied(refused, th.now)
	th.taken, th.fresh = th.version, false
	th.tell()
}

func (th *theatre) check(ttl time.Duration) {
	if th.fresh {
		return // nothing has a listener yet
	}
	for addr, at := range th.told {
		if th.now.Sub(at) >= ttl {
			continue
		}
		leads := false
		for name, body := range th.envoy.has[1] {
			if owner(name) == addr.String() {
				fields := strings.Fields(body)
				_, ok := th.envoy.has[0][fields[1]]
				leads = leads || ok
			}
		}
		if !leads {
			th.t.Fatalf("%s was answered %s ago and leads nowhere: Envoy has %v\n%s", addr, th.now.Sub(at), th.envoy.has,
				strings.Join(th.log[max(0, len(th.log)-40):], "\n"))
		}
	}
}

// paperEnvoy takes one resource at a time, in the order of pkg/xds: clusters, listeners, the
// removal of listeners, that of clusters. It takes what it was given when it began, to the end.
type paperEnvoy struct {
	has   [2]map[string]string // clusters, listeners: body by name
	queue []func()
	begun int // version
	done  int
}

func newPaperEnvoy() paperEnvoy { return paperEnvoy{has: [2]map[string]string{{}, {}}} }

func (e *paperEnvoy) step(given xds.Snapshot, version int) {
	if len(e.queue) == 0 && e.done != version {
		e.begun = version
		for i, list := range [][]*xds.Stored{given[clusterType], given[listenerType]} {
			for _, r := range list {
				if body := string(bodyOf(r)); !strings.Contains(body, "bad") {
					e.queue = append(e.queue, func() { e.has[i][r.Name] = body })
				}
			}
		}
		for _, i := range []int{1, 0} {
			list := [][]*xds.Stored{given[clusterType], given[listenerType]}[i]
			for name := range e.has[i] {
				if !slices.ContainsFunc(list, func(r *xds.Stored) bool { return r.Name == name }) {
					e.queue = append(e.queue, func() { delete(e.has[i], name) })
				}
			}
		}
	}
	for range 3 {
		if len(e.queue) > 0 {
			e.queue[0]()
			e.queue = e.queue[1:]
		}
	}
	if len(e.queue) == 0 {
		e.done = e.begun
	}
}

func (e *paperEnvoy) verdict(given xds.Snapshot) *xds.RejectedError {
	refused := &xds.RejectedError{}
	for i, url := range []string{clusterType, listenerType} {
		for _, r := range given[url] {
			if !strings.Contains(string(bodyOf(r)), "bad") {
				continue
			}
			id := xds.ID{Type: url, Name: r.Name}
			refused.Resources = append(refused.Resources, id)
			if _, has := e.has[i][r.Name]; has {
				refused.Kept = append(refused.Kept, id)
			}
		}
	}
	if len(refused.Resources) == 0 {
		return nil
	}
	return refused
}
