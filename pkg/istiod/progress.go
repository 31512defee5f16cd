package istiod

import (
	"context"
	"fmt"
	"slices"

	"understudy.mesh/pkg/xds"
)

// progress takes in how far Envoy is.
func (l *loop) progress(ctx context.Context) {
	if n := l.i.c.Relay.Answers(listenerType); n > l.applied {
		l.applied = n
		l.judge()
		l.i.c.InForce()
	}
	l.i.names.step(ctx)
	if n := l.i.names; n != nil && n.begun && !l.answering && (!n.waiting || !l.i.newcomer()) { // a newcomer answers what the one before does
		l.answering = true
		l.i.c.Ready.Done(taskDNS)
		l.i.c.InForce()
	}
}

// judge says whether what Envoy has is fit to serve: without a vital listener the pod is not what others take it for, anything
// else that Envoy lacks concerns only whoever needs it.
func (l *loop) judge() {
	if !l.mayTakeOver() {
		return
	}
	listeners := l.i.c.Relay.Status()[listenerType]
	for _, name := range l.i.c.Vital {
		if slices.Contains(listeners.Lacking, name) {
			l.i.c.Ready.Fail(taskConfig, fmt.Errorf("listener %q of istiod: Envoy refuses it%s: %s",
				name, l.i.lacking.of(xds.ID{Type: listenerType, Name: name}), listeners.Refused[name]))
			return
		}
	}
	if !l.succession.over {
		l.i.c.Ready.Pending(taskConfig, "istiod has not said yet what is different from what the generation before had")
		return
	}
	if l.applied > 0 {
		l.i.c.Ready.Done(taskConfig)
	}
}
