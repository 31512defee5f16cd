package istiod

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"

	"understudy.mesh/pkg/xds"
)

// silence is how long istiod may say nothing to what was asked of clusters or listeners, of which there always are some, before
// another istiod is sought (istio#39926, istio#31277).
const silence = 60 * time.Second

// The type URLs that matter to the stream. Istiod's answers come in the order in which it is asked: what refers to others is
// asked for after them, as endpoints that come before their cluster are sent twice.
const (
	typePrefix   = "type.googleapis.com/"
	envoyPrefix  = typePrefix + "envoy."
	clusterType  = envoyPrefix + "config.cluster.v3.Cluster"
	endpointType = envoyPrefix + "config.endpoint.v3.ClusterLoadAssignment"
	listenerType = envoyPrefix + "config.listener.v3.Listener"
	secretType   = envoyPrefix + "extensions.transport_sockets.tls.v3.Secret"
	workloadType = typePrefix + "istio.workload.Workload"
	namesType    = typePrefix + "istio.networking.nds.v1.NameTable"
)

func order() []string {
	return []string{
		clusterType, endpointType, listenerType, envoyPrefix + "config.route.v3.RouteConfiguration", secretType, extensionsType,
	}
}

// passes says whether a type is Envoy's. Istiod ends the stream of a workload that asks for one which it does not know.
func passes(url string) bool { return strings.HasPrefix(url, envoyPrefix) || url == workloadType }

// loop owns the stream to istiod: one goroutine, one select. Everything in it belongs to that goroutine.
type loop struct {
	i       *Istiod
	backoff *backoff

	stream     *upstream   // nil: there is none
	opening    chan opened // of an attempt that is being made; nil: none is
	retry      *time.Timer // until the next attempt; nil: none is due
	succession succession
	lastGood   lastGood
	giveBack   giveBack
	patience   time.Duration     // reconcilePatience
	silence    time.Duration     // see there
	silent     *time.Timer       // until the stream is given up
	awaited    []string          // types to which istiod has said nothing yet
	nonces     map[string]string // the last one of each type
	named      bool              // the stream was asked for what is not Envoy's
	applied    uint64            // answers of Envoy's for listeners, as was last told
	answering  bool              // DNS has its first names
	reason     string            // why there is no stream, as was last logged
	distrusts  bool              // the next stream is for Envoy to get everything
	vetted     bool              // this generation's Envoy was compared with the one before
	early      earlyResponses
	extensions uint64 // the last response with modules for which Envoy has not answered; 0: none
}

// opened is how an attempt ended.
type opened struct {
	stream *upstream
	err    error
}

// run keeps a stream open until ctx ends.
func (l *loop) run(ctx context.Context) {
	l.silent = time.NewTimer(l.silence)
	l.silent.Stop()
	if l.lastGood.store != nil {
		l.lastGood.ticks = time.NewTicker(l.lastGood.every)
		defer l.lastGood.ticks.Stop()
	}
	l.giveBack.begin(l.i.c.GiveBack != nil)
	defer l.end()
	for {
		l.succeed(false)
		l.awaitIstiod()
		l.open(ctx)
		responses, ended := l.receives()
		select {
		case <-ctx.Done():
			return
		case <-l.i.c.Relay.Changed():
			l.changed(ctx)
		case o := <-l.opening:
			l.opening = nil
			l.begin(o)
		case <-fires(l.retry):
			l.retry = nil
		case resp := <-responses:
			l.take(resp)
			l.progress(ctx) // of names, which Envoy has no answer to
		case err := <-ended:
			l.lost(err)
		case <-l.silent.C:
			l.stream.close(errSilent)
		case <-l.i.health.news:
			l.tellHealth()
		case <-l.i.resync:
			l.resync()
		case <-fires(l.succession.late):
			l.succeed(true)
		case <-fires(l.lastGood.after):
			l.restore()
		case <-l.due():
			l.keep()
		case <-fires(l.giveBack.timer):
			l.release()
		case <-l.i.keeps:
			l.keepNow()
		case <-l.i.c.Modules.Changed():
			l.modules()
		case warm := <-l.i.names.settled():
			l.i.names.note(warm)
			l.progress(ctx)
		case <-l.i.names.late():
			l.i.names.overdue()
			l.progress(ctx)
		case <-l.i.names.beside():
			l.i.names.republish()
		}
	}
}

// end leaves nothing behind.
func (l *loop) end() {
	select {
	case <-l.i.keeps:
		l.keepNow()
	default:
	}
	if l.opening != nil {
		if o := <-l.opening; o.err == nil { // its context has ended
			l.stream = o.stream
		}
		l.opening = nil
	}
	if l.stream != nil {
		l.stream.close(nil)
		l.stream = nil
		l.i.show(func(s *shown) { s.Connected, s.Since = false, time.Now() })
	}
	l.retry = nil
	l.silent.Stop()
	l.giveBack.end()
	l.i.names.rest()
}

// open begins an attempt, if one is due: it is known who Envoy is, and there is no stream.
func (l *loop) open(ctx context.Context) {
	node := l.i.c.Relay.Node()
	if node != nil && l.i.c.MetadataDiscovery {
		l.i.c.Ready.Done(taskHBONE) // it took its bootstrap
	}
	if node == nil {
		node = l.i.c.Node
	}
	if l.stream != nil || l.opening != nil || l.retry != nil || node == nil || !l.succession.calls {
		return
	}
	done := make(chan opened, 1)
	l.opening = done
	go func() {
		stream, err := open(ctx, &l.i.c.Dial, node, l.i.log)
		done <- opened{stream, err}
	}()
}

// receives are the stream's channels. Responses are left where they are while those before wait for Envoy.
func (l *loop) receives() (responses <-chan *xds.Response, ended <-chan error) {
	if l.stream == nil {
		return nil, nil
	}
	if l.i.c.Relay.Room() {
		responses = l.stream.responses
	}
	return responses, l.stream.ended
}

// begin starts with a stream that was opened: istiod knows nothing of any before.
func (l *loop) begin(o opened) {
	if o.err != nil {
		l.i.failures.Add(1)
		l.restore()
		l.pause(o.err, 0)
		return
	}
	l.i.connections.Add(1)
	l.i.log.Info("connected to istiod", "address", l.i.c.Dial.Address)
	l.i.show(func(s *shown) { s.Connected, s.Since, s.LastError = true, time.Now(), "" })
	l.stream, l.nonces, l.awaited, l.named, l.reason = o.stream, make(map[string]string), nil, false, ""
	l.early = earlyResponses{waits: true}
	l.meet()
	if l.distrusts || l.i.c.PassAll {
		l.i.c.Relay.Distrust()
	}
	l.distrusts = false
	l.i.c.Relay.Begin()
	if l.early.waits {
		l.i.c.Relay.Anticipate(clusterType)
		l.i.c.Relay.Anticipate(listenerType)
	}
}

// lost takes in that the stream has ended.
func (l *loop) lost(err error) {
	age := time.Since(l.stream.opened)
	l.stream.close(nil)
	l.stream = nil
	l.silent.Stop()
	if errors.Is(err, errEnded) || errors.Is(err, errResync) || code(err) == codes.Canceled {
		l.i.closed.Add(1)
	} else {
		l.i.broken.Add(1)
	}
	l.i.show(func(s *shown) { s.Connected, s.Since = false, time.Now() })
	l.pause(err, age)
}

// resync gives the present stream up, or the pause before the next one: everything comes again, and Envoy gets it whether it
// has it or not.
func (l *loop) resync() {
	l.i.log.Info("everything is fetched anew from istiod, as somebody asked for")
	l.fetchAnew()
}

func (l *loop) fetchAnew() {
	l.distrusts = true
	if l.stream != nil {
		l.stream.close(errResync)
	}
	if l.retry != nil {
		l.retry.Stop()
		l.retry = nil
	}
}

// errResync ends a stream that somebody wants another one for.
var errResync = errors.New("everything is fetched anew")

// pause waits before the next attempt.
func (l *loop) pause(err error, age time.Duration) {
	wait := l.backoff.after(err, age)
	if errors.Is(err, errResync) {
		wait = 0
	}
	l.retry = time.NewTimer(wait)
	reason := "istiod at " + l.i.c.Dial.Address + ": " + err.Error()
	l.i.show(func(s *shown) { s.LastError = err.Error() })
	l.refused(err)
	if l.applied == 0 {
		l.i.c.Ready.Pending(taskConfig, reason)
	}
	log := l.i.log.Debug
	if reason != l.reason {
		log = l.i.log.Warn
	}
	if age >= longLived && errors.Is(err, errEnded) {
		log = l.i.log.Info
	}
	l.reason = reason
	log("no stream to istiod: what Envoy has stays in force", "err", err, "retry", wait.Round(time.Millisecond))
}

// changed takes in what there is new of the relay.
func (l *loop) changed(ctx context.Context) {
	l.repair()
	l.meet()
	l.tell()
	l.judged()
	l.progress(ctx)
}

// tell passes on what Envoy asks for and says.
func (l *loop) tell() {
	if l.stream == nil {
		return
	}
	known := order()
	place := func(url string) int {
		if at := slices.Index(known, url); at >= 0 {
			return at
		}
		return len(known)
	}
	news := l.i.c.Relay.Take()
	slices.SortFunc(news, func(a, b xds.News) int { return cmp.Or(place(a.Type)-place(b.Type), strings.Compare(a.Type, b.Type)) })
	listeners := false
	for _, n := range news {
		if !passes(n.Type) {
			continue
		}
		l.subscribe(n)
		for _, a := range n.Answers {
			if a.Nonce != "" { // of our own
				l.answer(n.Type, a.Nonce, a.Refusal)
			}
		}
		if len(n.Answers) > 0 {
			l.spill(n.Type)
		}
		listeners = listeners || n.First && n.Type == listenerType
	}
	if listeners && !l.named {
		l.named = true
		l.askForOurs()
	}
}

// askForOurs asks for what is not Envoy's, after all that is.
func (l *loop) askForOurs() {
	if l.i.names != nil {
		l.stream.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: namesType})
	}
	if l.i.c.Bundle != nil {
		l.stream.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: bundleType})
	}
	l.tellHealth()
}

// subscribe tells of what Envoy asks for, apart from what it says of a response: istiod takes them for one or the other.
func (l *loop) subscribe(n xds.News) {
	if !n.First && len(n.Subscribe)+len(n.Unsubscribe) == 0 {
		return
	}
	if n.First && (n.Type == clusterType || n.Type == listenerType) {
		l.awaited = append(l.awaited, n.Type)
		l.silent.Reset(l.silence)
	}
	l.stream.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: n.Type, ResourceNamesSubscribe: n.Subscribe, ResourceNamesUnsubscribe: n.Unsubscribe, InitialResourceVersions: n.Held,
	})
}

// answer is an ACK, or a NACK if there is a refusal.
func (l *loop) answer(url, nonce, refusal string) {
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: url, ResponseNonce: nonce}
	if refusal != "" {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.Internal), Message: refusal}
	}
	l.stream.send(req)
}

// take takes in one response.
func (l *loop) take(resp *xds.Response) {
	url, nonce := resp.Type, resp.Nonce
	if nonce == "" || nonce == l.nonces[url] { // it cannot be answered, or was
		l.refuse(url, "a response with the nonce of the one before, or with none")
		return
	}
	l.nonces[url] = nonce
	l.heard()
	l.lastGood.note(url, l.giveBack.note(resp))
	l.awaited = slices.DeleteFunc(l.awaited, func(awaited string) bool { return awaited == url })
	if len(l.awaited) == 0 {
		l.silent.Stop()
	}
	err := resp.Foreign()
	switch {
	case err != nil:
	case url == namesType && l.i.names != nil:
		if err = l.i.names.take(resp); err == nil {
			l.answer(url, nonce, "")
		}
	case url == bundleType && l.i.c.Bundle != nil:
		if err = l.takeBundle(resp); err == nil {
			l.answer(url, nonce, "")
		}
	case passes(url):
		if url != endpointType { // of which there are most, and no extension is in one
			l.lack(resp)
		}
		l.i.c.Modules.Take(resp)
		err = l.give(resp)
	default:
		err = errors.New("a type that this agent does not pass on")
	}
	if err != nil {
		l.refuse(url, err.Error())
		l.answer(url, nonce, err.Error())
	}
}

// refuse notes a response of which Envoy gets nothing.
func (l *loop) refuse(url, reason string) {
	l.i.refused.Add(1)
	l.i.log.Error("refused a response of istiod", "type", url, "reason", reason)
	l.i.show(func(s *shown) { s.Refused = url + ": " + reason })
}
