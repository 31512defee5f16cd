package dnsproxy

import (
	"log/slog"
	"testing"
	"time"
)

// Who may recheck and finds the question on its way leaves that to the next.
func TestRecheckIsReturned(t *testing.T) {
	o := newOutage(newClock().Now)
	o.down.Store(true)
	if !o.recheck() || o.recheck() {
		t.Fatal("want one recheck at a time")
	}
	o.returned()
	if !o.recheck() {
		t.Error("a recheck that was returned is not due")
	}
}

// Neither is a try that fails news of a server that has answered since.
func TestLateFailureOfAServer(t *testing.T) {
	now := newClock()
	u := &upstream{log: slog.New(slog.DiscardHandler)}
	before := now.Now()
	now.add(time.Second)
	u.done(now.Now(), time.Millisecond, nil)
	for range failingAfter {
		u.done(before, 2*time.Second, errBudget)
	}
	if u.failing() {
		t.Error("failing, by what was asked before it answered")
	}
	now.add(time.Second)
	for range failingAfter {
		u.done(now.Now(), time.Second, errBudget)
	}
	if !u.failing() || u.snapshot().Failures != 2*failingAfter {
		t.Errorf("%+v", u.snapshot())
	}
}
