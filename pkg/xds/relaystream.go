package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/pkg/xds/internal/refusal"
)

// relayStream is one Envoy that is connected to a relay. Relay.mu guards it, but for conn.
type relayStream struct {
	relay  *Relay
	conn   relayConn
	number uint64 // of the relay's streams, from 1

	interests map[string]*interest // by type URL
	nonce     uint64
	queue     []queued
	bytes     int           // of the queue's resources
	queued    chan struct{} // holds a token when the queue has something
	replaced  chan struct{} // closed when another stream has taken this one's place

	// unmatched are the endpoints, by name, of clusters that were sent after them: Envoy waits for them.
	unmatched map[string]struct{}
	late      *time.Timer // runs until they are sent again
	waiting   bool        // it runs
}

// relayConn is a configuration stream of an Envoy.
type relayConn interface {
	deltaRequests
	Send(*reply) error
}

// incrementsConn is one of an Envoy that asks for increments, as it mostly does.
type incrementsConn struct{ envoyStream }

func (c incrementsConn) Send(r *reply) error { return c.SendMsg(r.frame()) }

// queued is a response that is to be sent.
type queued struct {
	*reply
	bytes int
}

// interest is what one Envoy asks for of a type, and the responses for which it has not answered, by nonce.
type interest struct {
	wildcard bool
	names    map[string]struct{}
	inflight map[string]flight
}

// flight is a response on its way: what is in it, and whose it is.
type flight struct {
	receipts  []receipt // ascending
	resources []*kept
	removed   map[string]entry // as they were
	said      *[]string        // why Envoy refuses parts of the same response that went before; nil: it is not in parts
}

func (i interest) in(name string) bool {
	_, named := i.names[name]
	return named || i.wildcard
}

func newRelayStream(r *Relay, conn relayConn) *relayStream {
	st := &relayStream{
		relay: r, conn: conn, interests: make(map[string]*interest),
		queued: make(chan struct{}, 1), replaced: make(chan struct{}),
		unmatched: make(map[string]struct{}), late: time.NewTimer(endpointsLate),
	}
	st.late.Stop()
	return st
}

// replace ends the stream; the caller holds Relay.mu.
func (st *relayStream) replace() { close(st.replaced) }

// waitsFor says whether Envoy has been sent something of a type for which it has not answered.
func (st *relayStream) waitsFor(url string) bool {
	sub := st.interests[url]
	return sub != nil && len(sub.inflight) > 0
}

func (st *relayStream) room() bool { return len(st.queue) < maxQueued && st.bytes < maxQueuedBytes }

// errReplaced is what the older of two streams hears.
var errReplaced = errors.New("another stream was opened on this socket")

// serve reads and writes until the stream, or the relay, ends. Reading never waits for writing.
func (st *relayStream) serve() error {
	requests := st.relay.receive(st.conn)
	written := make(chan error, 1)
	end := make(chan struct{})
	defer close(end)
	st.relay.sock.Go(func() { written <- st.write(end) })
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return nil
			}
			st.relay.handle(st, req)
		case <-st.late.C:
			st.relay.overdue(st)
		case err := <-written:
			return err
		case <-st.replaced:
			return errReplaced
		case <-st.relay.sock.Ending():
			return nil
		}
	}
}

// write sends what is queued until end is closed. One that waits for Envoy is released by the end of the stream.
func (st *relayStream) write(end <-chan struct{}) error {
	for {
		select {
		case <-st.queued:
		case <-end:
			return nil
		}
		for {
			next := st.head()
			if next == nil {
				break
			}
			if err := st.conn.Send(next); err != nil {
				return fmt.Errorf("send to Envoy: %w", err)
			}
			st.sent()
		}
	}
}

// head is the response to be sent next; nil: there is none.
func (st *relayStream) head() *reply {
	st.relay.mu.Lock()
	defer st.relay.mu.Unlock()
	if len(st.queue) == 0 {
		return nil
	}
	return st.queue[0].reply
}

// sent takes the head off the queue.
func (st *relayStream) sent() {
	st.relay.mu.Lock()
	defer st.relay.mu.Unlock()
	st.bytes -= st.queue[0].bytes
	st.queue = slices.Delete(st.queue, 0, 1)
	st.relay.counters.responses.Add(1)
	st.relay.wake()
}

// handle takes in one request: an ACK or NACK, a change of subscription, or both.
func (r *Relay) handle(st *relayStream, req *discoveryv3.DeltaDiscoveryRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req.GetNode() != nil {
		r.node = req.GetNode()
	}
	url := req.GetTypeUrl()
	l := r.ledgers[url]
	if l == nil {
		l = newLedger(url)
		r.ledgers[url] = l
	}
	sub := st.interests[url]
	first := sub == nil
	if first {
		sub = &interest{names: make(map[string]struct{}), inflight: make(map[string]flight), wildcard: len(req.GetResourceNamesSubscribe()) == 0}
		st.interests[url] = sub
		if sub.wildcard {
			l.subscribe(wildcard)
		}
		l.retain(req.GetInitialResourceVersions(), st.number)
	} else {
		r.answer(st, l, sub, req)
	}
	st.subscribe(url, l, sub, req, first)
	r.wake()
}

// subscribe changes what Envoy asks for, and answers at once with what the ledger has of it. Whoever asks for a resource by
// name gets it, even when it was sent before: Envoy may have dropped it since.
func (st *relayStream) subscribe(url string, l *ledger, sub *interest, req *discoveryv3.DeltaDiscoveryRequest, first bool) {
	names := len(req.GetResourceNamesSubscribe())
	asked := interest{names: make(map[string]struct{}, names), wildcard: sub.wildcard && first}
	sub.names, l.names, l.upstream.subscribe = withRoom(sub.names, names), withRoom(l.names, names), withRoom(l.upstream.subscribe, names)
	for _, name := range req.GetResourceNamesSubscribe() {
		l.subscribe(name)
		if name == wildcard {
			sub.wildcard, asked.wildcard = true, true
			continue
		}
		sub.names[name], asked.names[name] = struct{}{}, struct{}{}
	}
	for _, name := range req.GetResourceNamesUnsubscribe() {
		delete(sub.names, name)
		if name == wildcard {
			sub.wildcard = false
		}
		l.unsubscribe(name)
	}
	resources, removed := l.missing(asked, req.GetInitialResourceVersions())
	if len(resources)+len(removed) == 0 && !(asked.wildcard && l.complete) {
		return
	}
	gone := make(map[string]entry, len(removed))
	for _, name := range removed {
		gone[name] = entry{}
	}
	st.respond(url, l, sub, resources, gone)
}

// answer matches a request with the response that it answers, if it does.
func (r *Relay) answer(st *relayStream, l *ledger, sub *interest, req *discoveryv3.DeltaDiscoveryRequest) {
	f, ok := sub.inflight[req.GetResponseNonce()]
	if !ok {
		return // not an answer, or one that nobody waits for
	}
	delete(sub.inflight, req.GetResponseNonce())
	l.answers++
	why := ""
	if detail := req.GetErrorDetail(); detail != nil {
		why = detail.GetMessage()
		if why == "" {
			why = "Envoy gives no reason"
		}
		r.counters.nacks.Add(1)
		r.log.Warn("Envoy refused a response, or a part of it", "kind", kindOf(req.GetTypeUrl()), "resources", len(f.resources), "message", refusal.Shorten(why))
		l.refuse(f, why, st.number)
	} else {
		r.counters.pushes.Add(1)
		l.take(f.resources, st.number)
	}
	if f.said != nil {
		if why != "" {
			*f.said = append(*f.said, why)
		}
		why = strings.Join(*f.said, "; ") // the upstream hears of all parts, with the last one
	}
	r.resolve(l, f.receipts, why)
}

// resolve has the upstream told what became of its responses, if it still is the one that gave them.
func (r *Relay) resolve(l *ledger, receipts []receipt, refusal string) {
	for _, receipt := range receipts {
		if receipt.session == r.session {
			l.upstream.answers = append(l.upstream.answers, Answer{receipt.nonce, refusal})
		}
	}
}

// pass sends on what of a response this Envoy asks for. If that is nothing of some, it has it, or another Envoy wanted it.
func (st *relayStream) pass(url string, l *ledger, resources []*kept, removed map[string]entry, some bool) {
	sub := st.interests[url]
	if sub == nil {
		return // it will ask, and is served from the ledger
	}
	resources = slices.DeleteFunc(resources, func(k *kept) bool { return !sub.in(k.name) })
	for name := range removed {
		if !sub.in(name) {
			delete(removed, name)
		}
	}
	if some && len(resources)+len(removed) == 0 {
		st.relay.resolve(l, l.unsent, "")
		l.unsent = nil
		return
	}
	st.respond(url, l, sub, resources, removed)
}

// respond sends Envoy resources of a type, and what is gone, as the answer to all that of the type was not sent yet. What goes by name goes one by
// one: of several in a response a bad one hides the others.
func (st *relayStream) respond(url string, l *ledger, sub *interest, resources []*kept, removed map[string]entry) {
	resources = st.relay.load(l, resources)
	st.note(url, resources)
	st.relay.counters.resources.Add(uint64(len(resources) + len(removed)))
	var said *[]string
	if url == extensionURL && len(resources) > 1 {
		for said = new([]string); len(resources) > 1; resources = resources[1:] {
			st.enqueue(url, sub, flight{resources: resources[:1], said: said})
		}
	}
	st.enqueue(url, sub, flight{receipts: l.unsent, resources: resources, removed: removed, said: said})
	l.unsent = nil
}

func (st *relayStream) enqueue(url string, sub *interest, f flight) {
	st.nonce++
	q := queued{reply: &reply{
		url: url, nonce: strconv.FormatUint(st.nonce, 10), version: strconv.FormatUint(st.relay.given, 10),
		resources: firstOnes(f.resources, st.relay.first, func(k *kept) string { return k.name }), removed: slices.Sorted(maps.Keys(f.removed)),
	}}
	for _, k := range f.resources {
		q.bytes += len(k.raw)
	}
	sub.inflight[q.nonce] = f
	st.queue = append(st.queue, q)
	st.bytes += q.bytes
	select {
	case st.queued <- struct{}{}:
	default:
	}
}
