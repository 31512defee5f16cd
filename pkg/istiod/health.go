package istiod

import (
	"strings"
	"sync"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

// healthType is of requests that say how the application is. Nothing answers them.
const healthType = typePrefix + "istio.v1.HealthInformation"

// maxHealth bounds what istiod is told of what is wrong: it becomes a condition of a WorkloadEntry.
const maxHealth = 1 << 10

// applicationHealth is how the application is, as it was said last.
type applicationHealth struct {
	news chan struct{} // holds a token when it is otherwise than before

	mu    sync.Mutex
	known bool
	wrong string // "": nothing
}

// say takes in how the application is.
func (h *applicationHealth) say(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known, h.wrong = true, ""
	if err != nil {
		h.wrong = strings.ToValidUTF8(err.Error(), "?")
		h.wrong = strings.ToValidUTF8(h.wrong[:min(len(h.wrong), maxHealth)], "")
	}
	select {
	case h.news <- struct{}{}:
	default:
	}
}

// String is what the debug page says; "" is nothing.
func (h *applicationHealth) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.known:
		return ""
	case h.wrong != "":
		return "unhealthy: " + h.wrong
	}
	return "healthy"
}

// request is what istiod is told; nil: nothing is known.
func (h *applicationHealth) request() *discoveryv3.DeltaDiscoveryRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.known {
		return nil
	}
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: healthType}
	if h.wrong != "" {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.Internal), Message: h.wrong}
	}
	return req
}

// tellHealth tells istiod, which drops it where it does not know yet who calls: not before Envoy has asked for its listeners.
func (l *loop) tellHealth() {
	req := l.i.health.request()
	if l.stream == nil || !l.named || req == nil {
		return
	}
	l.i.log.Info("istiod is told how the application is", "health", l.i.health.String())
	l.stream.send(req)
}
