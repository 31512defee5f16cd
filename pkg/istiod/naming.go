package istiod

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/istiod/internal/wire"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

const (
	// patience is how long a name whose addresses other clients reach, too, waits for Envoy: without it, traffic to it is
	// traffic to an unknown destination, as it was before.
	patience = 2 * time.Second
	// warmingPoll is how often Envoy is asked whether what it acknowledged is in force, in the long run; warmingFirst is the first
	// pause, which doubles until then: mostly it is in force at once, and a pod that starts is not ready before.
	warmingPoll  = 50 * time.Millisecond
	warmingFirst = 4 * time.Millisecond
	// pollShare keeps the questions to a fifth of Envoy's main thread: in a large mesh each of them takes it a while.
	pollShare = 4
)

// naming brings the names of istiod's tables into force: one that is new appears once Envoy uses what came before it, one
// that goes does so at once. A nil naming has none, and never anything to do.
type naming struct {
	c   *Config
	log *slog.Logger

	names    *publish.Names
	waits    func(table.Host) bool // which hosts Envoy does not lead anywhere yet
	begun    bool                  // a table has been published
	number   uint64                // of the relay's response that was the last one before the newest table
	waiting  bool                  // for Envoy
	patience time.Duration         // see there
	patient  *time.Timer           // until the names that need not wait any longer appear; nil: they have, or nothing waits
	polled   uint64                // the number for which Envoy is being asked; 0: it is not
	warm     chan bool             // gets whether Envoy uses all that it has taken
	used     bool                  // it does, as of the newest table
	// told is what DNS answers, for whoever wants to know it besides the loop; nil: nothing yet.
	told atomic.Pointer[[]table.Host]
}

// take takes in a table.
func (n *naming) take(resp *xds.Response) error {
	for _, r := range resp.Resources { // there is one
		hosts, err := wire.Names(r.Body, n.c.Pod)
		if err != nil {
			return err
		}
		n.want(n.mark(hosts))
		if n.begun { // before the first table DNS holds queries, which an empty one would end
			n.tell()
		}
	}
	return nil
}

// want makes hosts what is to be answered, once Envoy has answered for what came before them.
func (n *naming) want(hosts []table.Host) {
	n.names.Want(hosts)
	n.waits = all
	n.number, n.waiting, n.used = n.c.Relay.Given(), true, false
	if n.patient == nil {
		n.patient = time.NewTimer(n.patience)
	}
}

// tell has DNS answer what it is to answer now.
func (n *naming) tell() (set []table.Host, gone []string) {
	set, gone = n.names.Change()
	n.c.Names(set, gone)
	told := n.names.Answered()
	n.told.Store(&told)
	return set, gone
}

// answered is what DNS answers, nil before the first table; another change gives another pointer. Any goroutine may call it.
func (n *naming) answered() *[]table.Host {
	if n == nil {
		return nil
	}
	return n.told.Load()
}

// mark notes which hosts have addresses that lead nowhere but to Envoy.
func (n *naming) mark(hosts []table.Host) []table.Host {
	for i, h := range hosts {
		for _, a := range h.Addrs {
			for _, p := range n.c.VIPs {
				hosts[i].VIP = hosts[i].VIP || p.Contains(a)
			}
		}
	}
	return hosts
}

// step does what can be done now.
func (n *naming) step(ctx context.Context) {
	if n == nil || !n.waiting || !n.c.Relay.Answered(n.number) {
		return
	}
	if n.used {
		n.waiting, n.patient = false, nil
		n.publish(none)
	} else if n.polled == 0 {
		n.poll(ctx)
	}
}

// overdue has those names appear that need not wait any longer.
func (n *naming) overdue() {
	n.patient = nil
	n.publish(virtual)
}

// These say which hosts wait for Envoy.
func all(table.Host) bool       { return true }
func virtual(h table.Host) bool { return h.VIP }
func none(table.Host) bool      { return false }

// beside holds a token when hosts wait for the Envoy of another generation, or do not any more.
func (n *naming) beside() <-chan struct{} {
	if n == nil {
		return nil
	}
	return n.names.Changed()
}

// publish answers the wanted names, but for those that wait.
func (n *naming) publish(waits func(table.Host) bool) {
	n.waits, n.begun = waits, true
	n.republish()
}

// republish does so again, as other hosts wait for the Envoy of another generation.
func (n *naming) republish() {
	if !n.begun {
		return
	}
	n.names.Release(n.waits)
	set, gone := n.tell()
	n.log.Debug("names of istiod", "set", len(set), "gone", len(gone), "withheld", n.names.Withheld())
}

// poll asks Envoy, beside the loop, whether it uses what it has taken.
func (n *naming) poll(ctx context.Context) {
	n.polled = n.number + 1 // the first table may come before any response
	go func() {
		for pause := warmingFirst; ; pause = min(2*pause, warmingPoll) {
			asked := time.Now()
			clusters, listeners, err := n.c.Warming(ctx)
			if err == nil && clusters == 0 && listeners == 0 {
				n.warm <- true
				return
			}
			select {
			case <-ctx.Done():
				n.warm <- false
				return
			case <-time.After(max(pause, pollShare*time.Since(asked))):
			}
		}
	}()
}

// settled gets what poll has found.
func (n *naming) settled() <-chan bool {
	if n == nil {
		return nil
	}
	return n.warm
}

// note takes it in. A table that came meanwhile may stand behind responses that Envoy was not asked about.
func (n *naming) note(used bool) {
	n.used = used && n.polled == n.number+1
	n.polled = 0
}

// late fires when names need not wait any longer.
func (n *naming) late() <-chan time.Time {
	if n == nil {
		return nil
	}
	return fires(n.patient)
}

// rest waits for the poll, whose context has ended.
func (n *naming) rest() {
	if n != nil && n.polled != 0 {
		n.note(<-n.warm)
	}
}

// Pod is whose names are answered in their short forms.
type Pod = wire.Pod

// bundleType is the configuration of proxies, of which istiod sends the roots that the mesh trusts besides those of its authority.
const bundleType = typePrefix + "istio.mesh.v1alpha1.ProxyConfig"

// takeBundle passes on the roots of a response. Those that are none are left out, which is no reason to refuse the others.
func (l *loop) takeBundle(resp *xds.Response) error {
	for _, r := range resp.Resources { // there is one, or nothing has changed
		var config meshv1alpha1.ProxyConfig
		if err := proto.Unmarshal(r.Body, &config); err != nil {
			return fmt.Errorf("the roots of the mesh: %w", err)
		}
		if err := l.i.c.Bundle(config.GetCaCertificatesPem()); err != nil {
			l.i.log.Error("a root that istiod adds is left out: see caCertificates of the MeshConfig", "err", err)
		}
	}
	return nil
}
