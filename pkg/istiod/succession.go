package istiod

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.mesh/pkg/istiod/internal/extension"
)

const (
	// inheritPatience is how long a newcomer does not call istiod because its Envoy still takes what it inherits: istiod sends all
	// of that again, and it is compared with what Envoy has taken. Then istiod is called in any case, as Envoy may wait for what
	// it alone has.
	inheritPatience = 10 * time.Second
	// reconcilePatience is how long a newcomer then waits for istiod to say what is different by now: one that is away must not
	// keep a pod from being upgraded.
	reconcilePatience = 3 * time.Second
)

// succession is the way of a newcomer that inherits: Envoy takes what the generation before had, then the stream is opened, then
// istiod says what is different. The zero value is of a newcomer at its begin.
type succession struct {
	late  *time.Timer // ends the step; nil: none has begun, or the last one is over
	calls bool        // the stream may be opened
	over  bool        // this generation may say that it is ready
}

// succeed goes as far as can be gone now; late says that the present step has taken too long.
func (l *loop) succeed(late bool) {
	l.vet()
	s, relay := &l.succession, l.i.c.Relay
	switch {
	case s.over:
	case !l.i.newcomer():
		*s = succession{calls: true, over: true}
	case !s.calls && (late || relay.Answers(listenerType) > 0):
		s.calls, s.late = true, time.NewTimer(l.patience)
	case s.calls && (late || relay.Reconciled()):
		if late {
			l.i.log.Info("istiod has not said what is different from what the generation before had: that stays in force")
		}
		s.over, s.late = true, nil
		l.judge()
		l.i.c.InForce()
	case s.late == nil && relay.Node() != nil:
		s.late = time.NewTimer(inheritPatience)
	}
}

// vet has a newcomer give up whose Envoy lacks an extension that is in force: it says what it has before it asks for anything.
func (l *loop) vet() {
	node := l.i.c.Relay.Node()
	if node == nil || l.vetted || !l.i.newcomer() {
		return
	}
	l.vetted = true
	has := extension.Of(node)
	lacks := slices.DeleteFunc(slices.Clone(l.i.before.extensions), func(name string) bool { return has[name] })
	if len(has) > 0 && len(lacks) > 0 { // else it names none
		l.i.giveUp(fmt.Errorf("this Envoy lacks the extensions %s, which are in force: use an image whose Envoy has them, or keep istiod from asking for them", strings.Join(lacks, ", ")))
	}
}

// mayTakeOver has a newcomer give up whose Envoy refuses what the generation before serves.
func (l *loop) mayTakeOver() bool {
	name, why := l.i.c.Relay.Lost()
	if name == "" || !l.i.newcomer() {
		return true
	}
	l.i.giveUp(fmt.Errorf("what the generation before serves is refused by Envoy: %s: %s", name, why))
	return false
}

// refused has a newcomer give up that istiod does not want, where it serves the generation before.
func (l *loop) refused(err error) {
	if refuses(err) && !l.succession.over && l.i.before.connected {
		l.i.giveUp(fmt.Errorf("istiod at %s refuses this generation, and serves the one before: %w", l.i.c.Dial.Address, err))
	}
}
