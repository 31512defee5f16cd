package upstream

import (
	"log/slog"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

// Who may recheck and finds the question on its way leaves that to the next.
func TestRecheckIsReturned(t *testing.T) {
	o := newHealth(dnstest.NewClock().Now)
	o.down.Store(true)
	if !o.Recheck() || o.Recheck() {
		t.Fatal("want one recheck at a time")
	}
	o.Returned()
	if !o.Recheck() {
		t.Error("a recheck that was returned is not due")
	}
}

// Neither is a try that fails news of a server that has answered since.
func TestLateFailureOfAServer(t *testing.T) {
	now := dnstest.NewClock()
	u := &server{log: slog.New(slog.DiscardHandler)}
	before := now.Now()
	now.Add(time.Second)
	u.done(now.Now(), time.Millisecond, nil)
	for range failingAfter {
		u.done(before, 2*time.Second, errBudget)
	}
	if u.failing() {
		t.Error("failing, by what was asked before it answered")
	}
	now.Add(time.Second)
	for range failingAfter {
		u.done(now.Now(), time.Second, errBudget)
	}
	if !u.failing() || u.snapshot().Failures != 2*failingAfter {
		t.Errorf("%+v", u.snapshot())
	}
}
