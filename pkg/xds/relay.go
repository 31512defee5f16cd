package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/xds/internal/history"
)

const (
	// maxQueued and maxQueuedBytes bound the responses that wait to be sent to Envoy. Beyond either the upstream is not
	// read: it waits for an Envoy that is slow, and its requests go on all the same (istio#39209).
	maxQueued      = 2
	maxQueuedBytes = 32 << 20
)

// Relay gives Envoy what an upstream control plane sends, response by response, and the upstream what Envoy asks for and
// says of it. It is made by NewRelay.
//
// Envoy's stream does not depend on the upstream's: it stays open while there is none, and an Envoy that starts anew gets
// what the relay holds, of which the upstream notices nothing.
//
// The upstream's side is for one goroutine: it calls Begin for each stream that it opens, then Take whenever Changed has a
// token, and Give for each response, as long as Room says that it may.
type Relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	*transport
	history history.History

	mu      sync.Mutex
	ledgers map[string]*ledger // by type URL
	node    *corev3.Node       // Envoy's own; nil before the first
	stream  *relayStream       // the Envoy that is connected; nil: none is
	streams uint64             // of Envoys so far
	session uint64             // the upstream's streams so far
	// listenersChanged says that Envoy was sent listeners, which may wait for routes, since the upstream's stream began.
	listenersChanged bool
	given            uint64        // the upstream's responses so far
	damaged          error         // see Damaged
	changed          chan struct{} // see Changed
}

// NewRelay returns a relay for l, a Unix listener whose file mode (0600) says who may connect. It starts nothing; Run owns
// l from then on.
func NewRelay(l net.Listener, log *slog.Logger) *Relay {
	r := &Relay{transport: newTransport(l, log), ledgers: make(map[string]*ledger), changed: make(chan struct{}, 1)}
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r.sock, r)
	return r
}

// Run serves until ctx ends, and returns once every stream is closed and every goroutine gone: nil when ctx was cancelled,
// else why it could not serve. It closes the listener. A relay runs once.
func (r *Relay) Run(ctx context.Context) error { return r.sock.Run(ctx) }

// DeltaAggregatedResources serves one stream; gRPC calls it.
func (r *Relay) DeltaAggregatedResources(conn envoyStream) error {
	return r.accept(incrementsConn{conn})
}

// accept serves one stream.
func (r *Relay) accept(conn relayConn) error {
	st := newRelayStream(r, conn)
	defer st.late.Stop()
	r.counters.streams.Add(1)
	r.mu.Lock()
	r.streams++
	st.number = r.streams
	if r.stream != nil { // of an Envoy whose end has not come through yet: there is one for each socket
		r.stream.replace()
	}
	r.stream = st
	r.mu.Unlock()
	defer r.forget(st)
	return st.serve()
}

// forget takes what a stream was sent and has not answered for as never sent.
func (r *Relay) forget(st *relayStream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for url, sub := range st.interests {
		l := r.ledgers[url]
		for _, f := range sub.inflight {
			l.unsent = append(l.unsent, f.receipts...)
		}
		slices.SortFunc(l.unsent, func(a, b receipt) int { return cmp.Compare(a.number, b.number) })
	}
	if r.stream == st {
		r.stream = nil
	}
	r.wake()
}

// wake puts a token into Changed.
func (r *Relay) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Changed holds a token when there may be something to Take, or Room again, or Answered may say otherwise than before.
func (r *Relay) Changed() <-chan struct{} { return r.changed }

// Node is what Envoy says that it is; nil before it has connected.
func (r *Relay) Node() *corev3.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}

// News is what the upstream is to be told of one type.
type News struct {
	Type string
	// First says that the stream has not asked for the type yet. Held are then all resources that Envoy has, with their
	// versions: of one that is left out nobody would say that it is gone.
	First bool
	Held  map[string]string
	// Subscribe and Unsubscribe are changes of what is asked for; of a First without a name all is.
	Subscribe, Unsubscribe []string
	Answers                []Answer
}

// Answer is Envoy's to one response; Refusal are its words, "" when it took it.
type Answer struct{ Nonce, Refusal string }

// Begin says that a new stream to the upstream is open: it is told everything anew, and nothing of what others gave.
func (r *Relay) Begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.session++
	r.listenersChanged = r.stream != nil && r.stream.waitsFor(listenerURL)
	for _, l := range r.ledgers {
		l.forgetUpstream()
	}
	r.wake()
}

// Anticipate has the upstream asked for all resources of a type, as Envoy will ask: what comes waits for it here.
func (r *Relay) Anticipate(url string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ledgers[url] == nil {
		r.ledgers[url] = newLedger(url)
	}
	r.ledgers[url].subscribe(wildcard)
	r.wake()
}

// Take returns what the upstream is to be told, by type, in no order.
func (r *Relay) Take() []News {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []News
	for _, l := range r.ledgers {
		if n, some := l.news(); some {
			all = append(all, n)
		}
	}
	return all
}

// Room says whether a further response may be given: those before have been sent.
func (r *Relay) Room() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stream == nil || r.stream.room()
}

// errNotAsked is of a type that Envoy never asked for.
var errNotAsked = errors.New("nobody asked for this type")

// Give takes in a response of the upstream and passes it on, but for what Envoy has already of the first one of a type on a new
// stream. It keeps the resources. The error says why the whole of it is refused: it is not what the protocol calls a response, and
// Envoy gets nothing of it.
func (r *Relay) Give(resp *Response) error {
	if err := resp.Foreign(); err != nil {
		return err
	}
	resources := make([]*kept, 0, len(resp.Resources))
	for _, m := range resp.Resources {
		if m.Name == "" {
			return fmt.Errorf("a resource of type %q has no name", resp.Type)
		}
		resources = append(resources, keep(resp.Type, m))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.ledgers[resp.Type]
	if l == nil {
		return errNotAsked
	}
	r.given++
	l.unsent = append(l.unsent, receipt{r.given, r.session, resp.Nonce})
	gone, some := resp.Removed, len(resources)+len(resp.Removed) > 0
	if l.complete && l.upstream.silent {
		resources, gone = r.reconcile(resp.Type, l, resources, gone)
		some = true // Envoy has an answer
	}
	l.upstream.silent, l.upstream.distrusted = false, false
	removed := make(map[string]entry, len(gone))
	for _, name := range gone {
		removed[name] = l.held[name]
	}
	now := time.Now()
	l.give(resources, gone, func(change, name string) { r.history.Add(now, change, l.url, name) })
	if r.stream != nil {
		r.stream.pass(resp.Type, l, resources, removed, some)
	}
	r.wake() // of an answer, where there was nothing to pass on
	return nil
}

// Change is what the upstream said of one resource that was not so before.
type Change = history.Change

// Changes returns what the upstream has changed of what Envoy asks for, oldest first: of the last changes as many as fit in
// 1 MiB.
func (r *Relay) Changes() []Change { return r.history.Changes() }

// Inherit puts changes that the generation before has seen before those of this one.
func (r *Relay) Inherit(before []Change) { r.history.Precede(before) }

// load has resources in memory. One that cannot be read again is held no longer.
func (r *Relay) load(l *ledger, resources []*kept) []*kept {
	loaded := make([]*kept, 0, len(resources))
	for _, k := range resources {
		in, err := k.load(l.url)
		if err != nil {
			delete(l.held, k.name)
			r.damaged = err
			r.wake()
			continue
		}
		loaded = append(loaded, in)
	}
	return loaded
}

// Damaged says, once, why a resource that was in a file cannot be given to Envoy; nil: there is none such. The upstream has to give
// everything again.
func (r *Relay) Damaged() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.damaged
	r.damaged = nil
	return err
}

// Given is the number of the response that was given last; 0: none was.
func (r *Relay) Given() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.given
}

// Answered says whether Envoy has answered for all responses up to this number.
func (r *Relay) Answered(number uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	open := func(receipts []receipt) bool { return len(receipts) > 0 && receipts[0].number <= number }
	for _, l := range r.ledgers {
		if open(l.unsent) {
			return false
		}
	}
	if r.stream == nil {
		return true
	}
	for _, sub := range r.stream.interests {
		for _, f := range sub.inflight {
			if open(f.receipts) {
				return false
			}
		}
	}
	return true
}

// Reconciled says whether the upstream has answered, on its present stream, for each type that Envoy asks for, and Envoy for
// all of that.
func (r *Relay) Reconciled() bool {
	r.mu.Lock()
	begun, given := r.session > 0, r.given
	for _, l := range r.ledgers {
		begun = begun && (!l.wanted() || l.upstream.asked && !l.upstream.silent)
	}
	r.mu.Unlock()
	return begun && r.Answered(given)
}

// Status is what a relay knows of one type.
type Status struct {
	// Answers are the responses that Envoy took or refused.
	Answers uint64 `json:"answers"`
	// Held is how many resources Envoy has or is about to have.
	Held int `json:"held"`
	// Refused are the names of those that Envoy does not take in their newest version, with its words, and Lacking those
	// of them that it has in no version.
	Refused map[string]string `json:"refused,omitempty"`
	Lacking []string          `json:"lacking,omitempty"`
}

// Answers is how many responses of a type Envoy took or refused.
func (r *Relay) Answers(url string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.ledgers[url]; l != nil {
		return l.answers
	}
	return 0
}

// Status is what there is of each type, by URL.
func (r *Relay) Status() map[string]Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]Status, len(r.ledgers))
	for url, l := range r.ledgers {
		all[url] = l.status()
	}
	return all
}
