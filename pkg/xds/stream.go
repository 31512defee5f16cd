package xds

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"understudy.mesh/internal/grpcsock"
)

const (
	// maxResponse bounds the resources of one response in bytes. It is made in one
	// piece and so costs that much memory for a moment; but Envoy starts its workers
	// after its first response with listeners, and each listener that comes later has
	// to be added to all of them, which for thousands takes minutes. This is enough for
	// 30,000.
	maxResponse = 8 << 20
)

// phase is a step of a push, in their order: one for each type but the last to send what is
// new, one to set the last, and then back through the others to remove what is gone.
type phase int

const idle phase = -1

// stream is one Envoy. Everything in it belongs to the goroutine of run.
type stream struct {
	server *Server
	conn   envoyStream
	log    *slog.Logger
	woken  chan struct{} // a token when a newer state may be there

	subs  map[string]*subscription // by type URL
	nonce uint64

	pushed   *state // the state of the running push, or of the last one
	phase    phase
	again    bool // a subscription changed since the push began
	lacking  bool // and it is of what the push names
	progress progress
}

func newStream(s *Server, conn envoyStream) *stream {
	return &stream{
		server: s, conn: conn, log: s.log, phase: idle,
		woken: make(chan struct{}, 1),
		subs:  make(map[string]*subscription),
	}
}

// wake tells the stream to look for a newer state. It never blocks.
func (st *stream) wake() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

// run is the stream's state machine. It ends when requests is closed, when the server ends, or when
// nothing can be sent any more.
func (st *stream) run(requests <-chan *discoveryv3.DeltaDiscoveryRequest) error {
	for {
		select {
		case req, ok := <-requests:
			if !ok {
				return nil
			}
			if err := st.handle(req); err != nil {
				return err
			}
		case <-st.woken:
		case <-st.server.sock.Ending():
			return nil
		}
		if err := st.advance(); err != nil {
			return err
		}
	}
}

// handle takes in one request: an ACK or NACK, a change of subscription, or both.
func (st *stream) handle(req *discoveryv3.DeltaDiscoveryRequest) error {
	url := req.GetTypeUrl()
	sub, known := st.subs[url]
	changed := !known
	if known {
		st.answer(sub, req)
		changed = sub.update(req)
	} else {
		sub = newSubscription(req)
		st.subs[url] = sub
	}
	if changed && st.passed(url) {
		st.again, st.lacking = true, st.lacking || named(url)
	}
	if slices.Contains(st.server.order, url) {
		return nil
	}
	return st.sendNothing(sub)
}

// passed says whether the running push is done with a type, so that it takes another
// one to follow a change of its subscription.
func (st *stream) passed(url string) bool {
	return st.phase == idle || slices.Index(st.server.order, url) < int(st.phase)
}

// answer matches a request with the response that it answers, if it does.
func (st *stream) answer(sub *subscription, req *discoveryv3.DeltaDiscoveryRequest) {
	names, ok := sub.inflight[req.GetResponseNonce()]
	if !ok {
		return // not an answer, or one that we no longer wait for
	}
	delete(sub.inflight, req.GetResponseNonce())
	detail := req.GetErrorDetail()
	if detail == nil {
		sub.accept(names)
		return
	}
	st.server.counters.nacks.Add(1)
	st.log.Debug("Envoy refused a response, or a part of it", "kind", kindOf(sub.url), "resources", len(names), "message", detail.GetMessage())
	sub.refuse(names, detail.GetMessage())
}

// advance takes the push as far as it goes without another answer of Envoy's.
func (st *stream) advance() error {
	for {
		if st.phase == idle && !st.begin() {
			return nil
		}
		url := st.typeURL()
		sub := st.subs[url]
		if sub == nil && named(url) {
			st.next() // no listener names any
			continue
		}
		if sub == nil {
			// Envoy asks for the next type when it has the one before, and that is warm (listeners
			// after clusters). Until then nothing is under way, and a newer state can take the
			// place of this one.
			if st.pushed == st.server.desired() {
				st.wait(notAsked(url))
				return nil
			}
			st.phase = idle
			continue
		}
		if len(sub.inflight) > 0 {
			st.wait(fmt.Sprintf("Envoy has not answered %d responses with %s yet", len(sub.inflight), plural(url)))
			return nil
		}
		sent, err := st.send(sub)
		if err != nil {
			return err
		}
		if !sent {
			st.next()
		}
	}
}

// begin starts a push when there is something newer than the last one.
func (st *stream) begin() bool {
	desired := st.server.desired()
	if desired == nil || (desired == st.pushed && !st.again) {
		return false
	}
	st.pushed, st.phase, st.again, st.lacking = desired, 0, false, false
	for _, sub := range st.subs {
		sub.retry()
	}
	return true
}

// next goes to the next phase; after the last the push is complete.
func (st *stream) next() {
	if int(st.phase) < 2*len(st.server.order)-2 {
		st.phase++
		return
	}
	st.phase = idle
	if st.lacking {
		return // what Envoy has asked for meanwhile is a part of it
	}
	st.server.counters.pushes.Add(1)
	first := st.progress.done == 0
	st.progress = progress{done: st.pushed.version, waiting: "it is about to be sent"}
	if rejected := st.rejected(); rejected != nil {
		st.progress.failed = rejected
	}
	st.report()
	if first {
		st.server.answered()
	}
}

func (st *stream) wait(what string) {
	if st.progress.waiting != what {
		st.progress.waiting = what
		st.report()
	}
}

func (st *stream) report() { st.server.report(st, st.progress) }

// send sends what the phase calls for, in as many responses as it takes; sent is false
// when there is nothing to send.
func (st *stream) send(sub *subscription) (sent bool, err error) {
	if len(sub.parts) > 0 {
		return st.sendParts(sub)
	}
	var changed []*Stored
	var removed []string
	last := len(st.server.order) - 1
	if int(st.phase) <= last {
		changed = firstOnes(sub.changed(st.pushed), st.server.first, func(r *Stored) string { return r.Name })
	}
	if int(st.phase) >= last {
		removed = sub.removed(st.pushed)
	}
	for len(changed) > 0 || len(removed) > 0 || !sub.answered && !named(sub.url) {
		n := chunk(sub.url, changed)
		// What is removed goes with the last chunk.
		gone := removed
		if n < len(changed) {
			gone = nil
		}
		if err := st.respond(sub, changed[:n], gone); err != nil {
			return sent, err
		}
		sent = true
		changed = changed[n:]
		removed = removed[len(gone):]
	}
	return sent, nil
}

// firstOnes moves the resources of the given names to the front.
func firstOnes[T any](resources []T, names []string, name func(T) string) []T {
	place := 0
	for i, r := range resources {
		if slices.Contains(names, name(r)) {
			copy(resources[place+1:i+1], resources[place:i])
			resources[place] = r
			place++
		}
	}
	return resources
}

// sendParts sends the parts of refused responses, all at once, each in a response of its own.
func (st *stream) sendParts(sub *subscription) (sent bool, err error) {
	parts := leading(sub.parts, st.server.first)
	sub.parts = nil
	for _, names := range parts {
		changed, removed := sub.among(st.pushed, names)
		if len(changed)+len(removed) == 0 {
			continue // no longer asked for
		}
		if err := st.respond(sub, changed, removed); err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, nil
}

// leading takes the given names out of parts and puts them before, each in a part of its own: what
// another resource of their part is refused for must not have them come last.
func leading(parts [][]string, names []string) [][]string {
	var first, rest [][]string
	for _, part := range parts {
		part = slices.DeleteFunc(part, func(name string) bool {
			is := slices.Contains(names, name)
			if is {
				first = append(first, []string{name})
			}
			return is
		})
		rest = append(rest, part)
	}
	return append(first, rest...)
}

// chunk is how many of the resources go into one response: of those that go by name one, as a bad one would hide the others.
func chunk(url string, resources []*Stored) int {
	size := 0
	for i, r := range resources {
		if size += len(r.Name) + r.Size(); i > 0 && (size > maxResponse || named(url)) {
			return i
		}
	}
	return len(resources)
}

// sendNothing answers for a type that is not served here. Envoy waits for what it asks
// for, with a start-up time-out that may be without end; so it hears that there is none.
func (st *stream) sendNothing(sub *subscription) error {
	none := slices.Collect(maps.Keys(sub.known))
	if len(none) == 0 && (sub.answered || !sub.wildcard) {
		return nil
	}
	return st.respond(sub, nil, none)
}

func (st *stream) respond(sub *subscription, changed []*Stored, removed []string) error {
	st.nonce++
	r := reply{url: sub.url, nonce: strconv.FormatUint(st.nonce, 10), removed: removed}
	if st.pushed != nil {
		r.version = strconv.FormatUint(st.pushed.version, 10)
	}
	resources, err := frame(sub.url, changed)
	if err != nil {
		select {
		case st.server.damaged <- struct{}{}:
		default:
		}
		return err
	}
	sub.sent(r.nonce, changed, removed)
	st.server.counters.responses.Add(1)
	st.server.counters.resources.Add(uint64(len(changed) + len(removed)))
	if err := st.conn.SendMsg(grpcsock.NewFrame(r.head(), resources)); err != nil {
		return fmt.Errorf("send to Envoy: %w", err)
	}
	return nil
}

// typeURL is the type of the phase.
func (st *stream) typeURL() string {
	last := len(st.server.order) - 1
	return st.server.order[min(int(st.phase), 2*last-int(st.phase))]
}

// named says whether Envoy asks for each resource of a type when another one names it, and for as long.
func named(url string) bool { return url == extensionURL || url == routeURL }

func notAsked(url string) string { return "Envoy has not asked for " + plural(url) + " yet" }

// plural is the type's name for people: "listeners".
func plural(url string) string { return strings.ToLower(kindOf(url)) + "s" }
