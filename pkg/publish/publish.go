// Package publish owns the order in which resources and names come into force.
package publish

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/xds"
)

const (
	// warmingPoll is how often Envoy is asked whether what it acknowledged is in
	// force: a listener answers its ACK before it has warmed.
	warmingPoll = 20 * time.Millisecond
	// pollShare keeps the questions to a fifth of Envoy's main thread: in a large mesh
	// each of them takes it a while.
	pollShare = 4
	// patienceFirst is how long a newer configuration waits for the one that Envoy works on:
	// were each given up for the next, changes that come faster than Envoy answers would
	// publish no name at all. It doubles with each one that is given up, to patienceLast, so
	// that any Envoy that comes to an end gets there.
	patienceFirst = time.Second
	patienceLast  = 30 * time.Second
	// retryRefused is how long Envoy is left alone with what it refused: the port that
	// a listener could not bind may become free.
	retryRefused = 5 * time.Second
	// slow is how long a configuration takes that the log says so of.
	slow = 5 * time.Second
	// delayMargin is added to the TTL of a removed name before its listener goes:
	// a client may have got the last answer just before the name went, and a
	// resolver rounds its TTL up to a whole second.
	delayMargin = 2 * time.Second
)

// Envoy is what a Publisher needs of an Envoy's configuration stream and admin API.
type Envoy struct {
	// Set gives Envoy its whole configuration; Applied waits until it has taken that version.
	Set     func(xds.Snapshot) uint64
	Applied func(ctx context.Context, version uint64) error
	// Connected says whether an Envoy is there; changed is closed when that may have changed.
	Connected func() (connected bool, changed <-chan struct{})
	// Renewed holds a token when an Envoy has come in the place of another: it may refuse what
	// that one took. It may be nil.
	Renewed <-chan struct{}
	// Warming returns how many clusters and listeners Envoy has taken but does not use yet.
	Warming func(context.Context) (clusters, listeners uint64, err error)
}

// Config is what a Publisher stands between: the control plane, Envoy and DNS.
type Config struct {
	// Changed holds a token when Next has something new: the whole desired state.
	Changed <-chan struct{}
	Next    func() (*Snapshot, error)
	Envoy
	// Names publishes what becomes different in what DNS answers: hosts that are new or have
	// other addresses, and names that are gone; nil without DNS capture.
	Names func(set []table.Host, gone []string)
	// TTL is how long a client may keep an answer.
	TTL time.Duration
	Log *slog.Logger
	// Answered is called each time Envoy has answered for a configuration; refused is
	// nil when it took everything.
	Answered func(refused *xds.RejectedError)
}

// Publisher brings snapshots into force so that a name never resolves to an
// address that Envoy cannot route: what is added is in force in Envoy before its
// name appears; what is removed loses its name first, and its listener stays
// until the last answer's TTL is over. What that means is decided in rollout.
type Publisher struct {
	Config
	*Others

	rollout
	shown     atomic.Pointer[Snapshot] // rollout.inForce, for other goroutines
	verdict   *xds.RejectedError       // what Envoy refuses of the configuration that it answered for last
	inherited bool                     // wanted is what the generation before had, not the control plane's yet
	newer     bool                     // Next has something new, as a wait for Envoy was told
	patience  time.Duration            // with the configuration that Envoy works on
	refused   string                   // what was logged last of Envoy's refusals; "" when it took everything
	begun     time.Time                // when the configuration that is on its way was asked for
	took      atomic.Int64             // nanoseconds until the last one was in force, for the metric
	unknown   atomic.Int64             // hosts that DNS does not answer because Envoy refused them, for the metric
}

// New starts nothing.
func New(c Config) *Publisher {
	if c.Names == nil {
		c.Names = func([]table.Host, []string) {}
	}
	return &Publisher{Config: c, Others: newOthers(), rollout: rollout{keep: c.TTL + delayMargin}, patience: patienceFirst}
}

// Unknown is how many hosts DNS does not answer because Envoy refused their resources.
func (p *Publisher) Unknown() int64 { return p.unknown.Load() }

// Took is how long the configuration in force took, from when it was made to when Envoy used it; 0 before the first.
func (p *Publisher) Took() time.Duration { return time.Duration(p.took.Load()) }

// Inherit makes snap, of the generation before, what the first snapshot is a change of.
func (p *Publisher) Inherit(snap *Snapshot) {
	p.seed(snap)
	p.inherited = true
}

// Published is what Envoy uses and the names that DNS answers; nil before the first.
func (p *Publisher) Published() *Snapshot { return p.shown.Load() }

// Run publishes what Next has each time that Changed says so, until ctx ends.
func (p *Publisher) Run(ctx context.Context) {
	if p.wanted != nil { // inherited, or interrupted
		p.bring(ctx)
	}
	for ctx.Err() == nil {
		if p.newer {
			p.publish(ctx)
			continue
		}
		expire, retry := p.timers()
		select {
		case <-ctx.Done():
			return
		case <-p.Changed:
			p.publish(ctx)
		case <-retry:
			p.bring(ctx)
		case <-p.Renewed:
			if p.wanted != nil { // what of it the new Envoy takes
				p.bring(ctx)
			}
		case <-p.changed:
			if p.reached {
				p.name(p.verdict)
			}
		case <-expire:
			p.send()
			p.show()
		}
	}
}

// timers fire when the first delayed resource has to go, and when what was refused is tried again;
// nil when there is none.
func (p *Publisher) timers() (expire, retry <-chan time.Time) {
	if first := p.expiry(); !first.IsZero() {
		expire = time.After(time.Until(first))
	}
	if p.refused != "" {
		retry = time.After(retryRefused)
	}
	return expire, retry
}

// publish brings what Next has into force.
func (p *Publisher) publish(ctx context.Context) {
	p.newer, p.begun = false, time.Now()
	snap, err := p.Next()
	if err != nil {
		p.Log.Error("build Envoy's configuration; the last good one stays", "err", err)
		return
	}
	p.Log.Debug("built Envoy's configuration")
	first := p.wanted == nil
	p.want(snap, time.Now())
	p.inherited = false
	if !first { // before the first table DNS holds queries, which an empty one would end
		p.Names(p.change())
	}
	p.bring(ctx)
}

// bring gives Envoy the wanted resources and, once it uses them, publishes the names of those
// that it took. It gives up when ctx ends, or when a newer snapshot has waited for too long;
// names that are not in force then stay unpublished.
func (p *Publisher) bring(ctx context.Context) {
	p.standIns = nil // what was refused is tried again
	refused, err := p.awaitApplied(ctx, p.send())
	if err == nil && refused != nil && p.standIn(refused.Missing()) {
		var still *xds.RejectedError
		still, err = p.awaitApplied(ctx, p.send())
		refused = together(refused, still)
	}
	switch {
	case errors.Is(err, errSuperseded):
		p.patience = min(2*p.patience, patienceLast)
		return
	case err != nil:
		return // ending
	}
	p.patience = patienceFirst
	if !p.begun.IsZero() {
		p.took.Store(int64(time.Since(p.begun)))
		p.begun = time.Time{}
	}
	p.report(refused)
	if refused != nil && len(refused.Resources) == 0 {
		return // nobody knows what is in force
	}
	p.name(refused)
	if !p.inherited {
		p.Answered(refused)
	}
}

// name publishes the names that lead somewhere: Envoy uses what it was given last, but for what it refuses.
func (p *Publisher) name(refused *xds.RejectedError) {
	p.verdict, p.elsewhere = refused, p.there.Load()
	p.applied(refused, time.Now())
	p.unknown.Store(int64(p.withheld()))
	p.Names(p.change())
	p.show()
}

// together is what Envoy refuses of a configuration; what it refuses still, with earlier
// versions in the place of what it lacked, is all that it lacks.
func together(refused, still *xds.RejectedError) *xds.RejectedError {
	if still == nil {
		still = &xds.RejectedError{}
	}
	all := *refused
	for _, id := range still.Resources {
		if !slices.Contains(refused.Resources, id) {
			all.Resources = append(slices.Clip(all.Resources), id)
		}
	}
	lacks := setOf(still.Missing())
	all.Kept = slices.DeleteFunc(slices.Clone(all.Resources), func(id xds.ID) bool { return lacks[id] })
	return &all
}

// show makes what is in force known to other goroutines.
func (p *Publisher) show() {
	if p.reached {
		p.shown.Store(p.inForce())
	}
}

// report logs what Envoy refuses once, however often it is tried again.
func (p *Publisher) report(refused *xds.RejectedError) {
	reasons := ""
	if refused != nil {
		reasons = strings.Join(refused.Reasons, "; ")
	}
	switch {
	case reasons == p.refused:
	case reasons == "":
		p.Log.Info("Envoy takes the whole configuration again")
	default:
		p.Log.Error("Envoy refused a part of the configuration: names that need it stay unknown to DNS, and it is tried again",
			"every", retryRefused, "reason", reasons)
	}
	p.refused = reasons
	resources := 0
	for _, list := range p.wanted.Resources {
		resources += len(list)
	}
	level := slog.LevelDebug
	if p.Took() >= slow {
		level = slog.LevelInfo
	}
	p.Log.Log(context.Background(), level, "configuration in force", "hosts", len(p.wanted.Hosts), "resources", resources, "took", p.Took().Round(time.Millisecond))
}

// send gives Envoy what it is to have now, and returns the snapshot's version.
func (p *Publisher) send() uint64 { return p.Set(p.snapshot(time.Now())) }

// errSuperseded ends the wait for a configuration that a newer one replaces.
var errSuperseded = errors.New("a newer configuration waits")

// awaitApplied returns once Envoy uses version: it has taken it and nothing warms any
// more. It returns what Envoy refused of it; an error says that the wait was given up.
func (p *Publisher) awaitApplied(ctx context.Context, version uint64) (*xds.RejectedError, error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if p.supersede(ctx) {
			giveUp(errSuperseded)
		}
	}()
	defer func() { giveUp(nil); <-watched }()
	var refused *xds.RejectedError
	if err := p.Applied(ctx, version); err != nil && !errors.As(err, &refused) {
		return nil, cmp.Or(context.Cause(ctx), err)
	}
	p.Log.Debug("Envoy has answered for the configuration", "version", version)
	for {
		asked := time.Now()
		clusters, listeners, err := p.Warming(ctx)
		if err == nil && clusters == 0 && listeners == 0 {
			return refused, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(max(warmingPoll, pollShare*time.Since(asked))):
		}
	}
}

// supersede returns true once a newer snapshot waits, and Envoy has had its time or is gone; false
// when ctx ends first.
func (p *Publisher) supersede(ctx context.Context) bool {
	patience := time.NewTimer(p.patience)
	defer patience.Stop()
	if !p.newer {
		select {
		case <-ctx.Done():
			return false
		case <-p.Changed:
			p.newer = true
		}
	}
	for {
		connected, changed := p.Connected()
		if !connected {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-patience.C:
			return true
		case <-changed:
		}
	}
}
