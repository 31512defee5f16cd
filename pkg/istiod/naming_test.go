package istiod

import (
	"testing"
	"time"
)

// TestNamesWait: a name whose address leads to Envoy alone appears when Envoy uses what came before it, however long that
// takes; another one after two seconds at most; and a name that goes, goes at once.
func TestNamesWait(t *testing.T) {
	_, a, e, s := cold(t)
	s.send(nameTable("t1", "old.example=10.0.0.1", "vip.example=240.240.0.1"))
	s.asked("NameTable ack t1")
	a.answers("old.example=10.0.0.1", "vip.example=240.240.0.1")
	a.setWarming(1)
	s.give(clusterType, "b=1")
	s.send(nameTable("t2", "new.example=10.0.0.2", "vip2.example=240.240.0.2"))
	s.asked("NameTable ack t2")
	a.answers() // at once
	a.answers("new.example=10.0.0.2")
	e.gets("Cluster +b", "")
	s.asked("Cluster ack n4")
	if got := a.table(); len(got) != 1 {
		t.Errorf("while the cluster warms DNS answers %q", got)
	}
	a.setWarming(0)
	a.answers("new.example=10.0.0.2", "vip2.example=240.240.0.2")
}

// TestNamesDoNotWait: where Envoy uses all that it has, nothing else has to happen for a name to be answered.
func TestNamesDoNotWait(t *testing.T) {
	_, a, _, s := coldWith(t, func(i *Istiod) { i.names.patience = time.Hour })
	s.quiet()
	s.send(nameTable("t1", "a.example=10.0.0.1", "v.example=240.240.0.1"))
	a.answers("a.example=10.0.0.1", "v.example=240.240.0.1")
	s.asked("NameTable ack t1")
	s.quiet()
	s.send(nameTable("t2", "a.example=10.0.0.1", "w.example=240.240.0.2"))
	a.answers("a.example=10.0.0.1", "w.example=240.240.0.2")
}

// TestNamesWaitInAHandOff: a host that only Envoy leads somewhere, and that comes while two generations accept, has its name in neither
// before one is alone. Others have theirs, and a release before this one that does not say what it answers is not waited for.
func TestNamesWaitInAHandOff(t *testing.T) {
	patient := func(i *Istiod) { i.names.patience = time.Hour }
	f, a, _, s := coldWith(t, patient)
	says := func(s *fakeStream, nonce string, names ...string) {
		t.Helper()
		s.send(nameTable(nonce, names...))
		s.asked("NameTable ack " + nonce)
	}
	s.quiet()
	says(s, "t1", "a.example=10.0.0.1", "v1.example=240.240.0.1")
	a.answers("a.example=10.0.0.1", "v1.example=240.240.0.1")
	from := a.tells()
	says(s, "t2", "b.example=10.0.0.2", "v1.example=240.240.0.1", "v2.example=240.240.0.2")
	a.answers("b.example=10.0.0.2", "v1.example=240.240.0.1")
	a.Alone()
	a.answers("b.example=10.0.0.2", "v1.example=240.240.0.1", "v2.example=240.240.0.2")
	last := a.ExportLast()

	b := successor(t, f, from, deadline)
	b.inherits()
	next := f.stream()
	next.asked("Cluster node held:a", "ClusterLoadAssignment +a held:a", "Listener held:virtualOutbound", "NameTable")
	says(next, "t3", "b.example=10.0.0.2", "v1.example=240.240.0.9", "v2.example=240.240.0.2", "v3.example=240.240.0.3")
	b.answers("b.example=10.0.0.2", "v1.example=240.240.0.1")
	b.ImportLast(last)
	b.answers("b.example=10.0.0.2", "v1.example=240.240.0.1", "v2.example=240.240.0.2")
	b.ImportLast(nil)
	b.answers("b.example=10.0.0.2", "v1.example=240.240.0.9", "v2.example=240.240.0.2", "v3.example=240.240.0.3")
}
