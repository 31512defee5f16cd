package xds

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inFile moves resources into a file, each behind some other bytes.
func inFile(t *testing.T, resources ...*Stored) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "bodies"))
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, r := range resources {
		n, err := f.WriteString("--" + string(bodyOf(t, r)))
		if err != nil {
			t.Fatal(err)
		}
		at += int64(n)
		r.Move(f, at-int64(r.Size()))
		if r.InMemory() {
			t.Errorf("%s is still in memory", r.Name)
		}
	}
	return f
}

// TestStored: a body is the same in memory and in a file, in whatever order it is read, and from one file into another.
func TestStored(t *testing.T) {
	large := strings.Repeat("x", 128<<10)
	resources := list("a=1", "empty=", "large="+large, "b=2", "c=3", "z="+large)
	for range 2 {
		inFile(t, resources...)
		var bodies Bodies
		for _, i := range []int{0, 1, 2, 3, 4, 5, 4, 3, 0, 2, 2, 5, 1} {
			want := list("a=1", "empty=", "large="+large, "b=2", "c=3", "z="+large)[i]
			got, err := bodies.Of(resources[i])
			if err != nil || string(got) != string(bodyOf(t, want)) || string(bodyOf(t, resources[i])) != string(got) {
				t.Errorf("%s has %d bytes, %v", want.Name, len(got), err)
			}
			if !want.Equal(resources[i]) || want.Size() != resources[i].Size() || want.Equal(nil) || (*Stored)(nil).Equal(want) {
				t.Errorf("%s is another one", want.Name)
			}
		}
	}
	if resources[0].Equal(resources[3]) {
		t.Error("two bodies are the same")
	}
}

// TestServedFromFile: Envoy gets what is in a file as if it were in memory, and what cannot be read again ends its stream and is said, until
// it was made anew.
func TestServedFromFile(t *testing.T) {
	resources := list("a=1", "b=2")
	s, path := startServer(t)
	s.Set(pair{Clusters: resources}.snapshot())
	f := inFile(t, resources...)
	c := connect(t, path)
	c.subscribe(clusterType)
	for _, m := range c.expect("Cluster +a +b").Resources {
		if want := map[string]string{"a": "1", "b": "2"}[m.Name]; string(m.Resource.Value) != want {
			t.Errorf("%s is %q", m.Name, m.Resource.Value)
		}
	}
	if _, err := f.WriteAt([]byte("9"), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := resources[0].Body(); !errors.Is(err, ErrUnreadable) {
		t.Errorf("what has changed is read: %v", err)
	}
	c = connect(t, path)
	c.subscribe(clusterType)
	if resp, open := <-c.responses; open {
		t.Fatalf("Envoy is given %s", describe(resp))
	}
	<-s.Damaged()
	s.Set(pair{Clusters: list("a=1", "b=2")}.snapshot())
	c = connect(t, path)
	c.subscribe(clusterType)
	c.expect("Cluster +a +b")
}
