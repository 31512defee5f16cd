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
