package xds

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// released has a relay keep what it exports in a file, behind something else.
func (r *relaying) released() *os.File {
	r.t.Helper()
	f, err := os.Create(filepath.Join(r.t.TempDir(), "resources"))
	if err != nil {
		r.t.Fatal(err)
	}
	head := "a line\n"
	_, err = f.WriteString(head)
	var e Exported
	if err == nil {
		e, err = r.Export(f)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.Release(e, f, int64(len(head)))
	for url, l := range r.ledgers {
		for name, e := range l.held {
			if e.newest.raw != nil || e.taken.raw != nil {
				r.t.Errorf("%s %s is still in memory", kindOf(url), name)
			}
		}
	}
	return f
}

// TestReleased: what is in a file is as if it were in memory.
func TestReleased(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	envoy.subscribe(endpointType, "e")
	r.told("Cluster first", "ClusterLoadAssignment first +e")
	large := strings.Repeat("x", 192<<10)
	r.give(clusterType, "a=1", "empty=", "large="+large, "z=26")
	envoy.expect("Cluster +a +empty +large +z")
	r.give(endpointType, "e=5")
	envoy.expect("ClusterLoadAssignment +e")
	r.told("Cluster ack n1", "ClusterLoadAssignment ack n2")
	before := r.exported()
	r.released()
	if after := r.exported(); len(after) != len(before) {
		t.Errorf("%d bytes are exported from the file, %d from memory", len(after), len(before))
	}
	r.released() // from one file into another

	r.give(clusterType, "a=2") // one is in memory again
	envoy.expect("Cluster +a")
	r.told("Cluster ack n3")
	again := connect(t, r.path)
	again.subscribe(clusterType)
	bodies := make(map[string]string)
	for _, m := range again.next().Resources {
		bodies[m.Name] = string(m.Resource.Value)
	}
	if len(bodies) != 4 || bodies["a"] != "2" || bodies["empty"] != "" || bodies["large"] != large || bodies["z"] != "26" {
		t.Errorf("an Envoy that starts anew gets %.200v", bodies)
	}
	_, next := successor(t, r.exported())
	next.expect("Cluster +a +empty +large +z")
	bytes := 0
	r.Taken(func(body []byte) { bytes += len(body) })
	if bytes != len(large)+len("2")+len("26")+len("5") {
		t.Errorf("%d bytes are taken", bytes)
	}
}

// TestReleasedIsTheSame: what a new stream of the upstream brings again does not reach Envoy, which has it.
func TestReleasedIsTheSame(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.give(clusterType, "a=1", "b=1")
	envoy.expect("Cluster +a +b")
	r.told("Cluster ack n1")
	r.released()
	r.Begin()
	r.told("Cluster first held:a held:b")
	r.give(clusterType, "a=1", "b=2")
	envoy.expect("Cluster +b")
	r.told("Cluster ack n2")
}

// TestReleasedIsRefused: Envoy has the version in the file, and so has one that starts anew.
func TestReleasedIsRefused(t *testing.T) {
	r := startRelay(t)
	envoy := connect(t, r.path)
	envoy.subscribe(clusterType)
	r.told("Cluster first")
	r.give(clusterType, "a=old")
	envoy.expect("Cluster +a")
	r.told("Cluster ack n1")
	r.give(clusterType, "a=new")
	resp := envoy.next()
	state := r.exported()
	e, err := r.Export(new(bytes.Buffer))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(state); err != nil {
		t.Fatal(err)
	}
	r.Release(e, f, 0)
	envoy.nack(resp, "no")
	r.told("Cluster nack n2 no")
	again := connect(t, r.path)
	again.subscribe(clusterType)
	if m := again.next().Resources[0]; string(m.Resource.Value) != "old" {
		t.Errorf("an Envoy that starts anew gets %q", m)
	}
}

// TestDamaged: what cannot be read again is missing, the rest is there, and the upstream has to give it again.
func TestDamaged(t *testing.T) {
	for name, damage := range map[string]func(f *os.File, size int64) error{
		"cut off": func(f *os.File, size int64) error { return f.Truncate(size - 1) },
		"another": func(f *os.File, size int64) error { _, err := f.WriteAt([]byte("?"), size-1); return err },
	} {
		t.Run(name, func(t *testing.T) {
			r := startRelay(t)
			envoy := connect(t, r.path)
			envoy.subscribe(clusterType)
			r.told("Cluster first")
			r.give(clusterType, "a=1")
			r.give(clusterType, "b=1")
			envoy.expect("Cluster +a")
			envoy.expect("Cluster +b")
			r.told("Cluster ack n1", "Cluster ack n2")
			f := r.released()
			info, err := f.Stat()
			if err == nil {
				err = damage(f, info.Size())
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Export(new(bytes.Buffer)); err == nil {
				t.Error("it is exported")
			}
			again := connect(t, r.path)
			again.subscribe(clusterType)
			if resp := again.next(); len(resp.Resources) != 1 {
				t.Errorf("an Envoy that starts anew gets %v, want one of two", resp)
			}
			if err := r.Damaged(); err == nil || !strings.Contains(err.Error(), "read Cluster") {
				t.Errorf("the damage is %v", err)
			}
			if err := r.Damaged(); err != nil {
				t.Errorf("it is told twice: %v", err)
			}
		})
	}
}
