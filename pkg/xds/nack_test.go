package xds

import (
	"strings"
	"testing"
)

func TestNACK(t *testing.T) {
	s, c := start(t, Snapshot{list("a", "b"), list("l")})
	version := s.Set(Snapshot{list("a=bad", "b=good"), list("l=new")})
	resp := c.next()
	c.nack(resp, "Error adding/updating cluster(s) a: no such filter")
	c.expect("Listener +l") // the stream goes on, and nothing is sent again in this push
	err := applied(t, s, version)
	if err == nil || !strings.Contains(err.Error(), `Cluster "a"`) || !strings.Contains(err.Error(), "no such filter") {
		t.Fatalf("got %v, want the resource and the reason", err)
	}
	if strings.Contains(err.Error(), `"b"`) {
		t.Errorf("%v names a resource that Envoy did not", err)
	}
	c.nothing()
	// The repair is all that goes: Envoy named a alone, so it took b.
	version = s.Set(Snapshot{list("a=repaired", "b=good"), list("l=new")})
	c.expect("Cluster +a")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
	if stats := s.Stats(); stats.NACKs != 1 {
		t.Errorf("%d NACKs, want 1", stats.NACKs)
	}
}

// TestNamedIn has messages of Envoy 1.40.
func TestNamedIn(t *testing.T) {
	names := []string{"svc-1", "svc-10", "outbound|80||a", "outbound|80||a.b", "ok"}
	for message, want := range map[string]string{
		"Error adding/updating cluster(s) outbound|80||a: Didn't find a registered implementation for 'nope' with type URL: '', outbound|80||a.b: no": "outbound|80||a outbound|80||a.b",
		"Error adding/updating listener(s) svc-10: malformed IP address: not an ip\n":                                                                 "svc-10",
		"Error adding/updating listener(s) svc-10: a\nsvc-1: error adding listener '127.0.0.1:0': no filter chains specified\n":                       "svc-1 svc-10",
		"Unable to unpack as envoy.config.cluster.v3.Cluster: goo.gle/debugstr  \ntype_url: \"ok\"":                                                   "",
	} {
		if got := strings.Join(namedIn(message, names), " "); got != want {
			t.Errorf("%q blames %q, want %q", message, got, want)
		}
	}
}

// TestNACKThenRemove: what Envoy refused an update of it still has in an older form.
func TestNACKThenRemove(t *testing.T) {
	s, c := start(t, Snapshot{list("a"), nil})
	s.Set(Snapshot{list("a=bad"), nil})
	c.nack(c.next(), "bad")
	version := s.Set(Snapshot{})
	c.expect("Cluster -a")
	if err := applied(t, s, version); err != nil {
		t.Error(err)
	}
}

// TestNACKWithoutName: Envoy's message may name nothing.
func TestNACKWithoutName(t *testing.T) {
	s, c := start(t, Snapshot{})
	version := s.Set(Snapshot{Listeners: list("l1", "l2", "l3", "l4")})
	c.nack(c.next(), "cannot parse")
	if err := applied(t, s, version); err == nil || !strings.Contains(err.Error(), `one of 4 resources Listener ["l1" "l2" "l3"]`) {
		t.Errorf("got %v", err)
	}
}
