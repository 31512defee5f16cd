package build

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/xds"
)

// manyEntries is n ServiceEntries in files of perFile: three in four TLS, one in four HTTP.
func manyEntries(n, perFile int) map[string]string {
	files := map[string]string{}
	var b strings.Builder
	for i := range n {
		proto, port := "TLS", 443
		if i%4 == 0 {
			proto, port = "HTTP", 80
		}
		fmt.Fprintf(&b, "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: service-%d\n  namespace: default\nspec:\n  hosts:\n  - service-%d.example.com\n  location: MESH_EXTERNAL\n  ports:\n  - number: %d\n    name: port\n    protocol: %s\n  resolution: DNS\n", i, i, port, proto)
		if i%perFile == perFile-1 || i == n-1 {
			files[fmt.Sprintf("f%05d.yaml", i/perFile)] = b.String()
			b.Reset()
		}
	}
	return files
}

// TestOneOfManyChanges changes one of 10,000 ServiceEntries and wants exactly its resources to differ.
func TestOneOfManyChanges(t *testing.T) {
	const n = 10000
	files := manyEntries(n, n)
	dir := writeFiles(t, files)
	s, _ := newTestSource(t, dir, testOptions())
	start := time.Now()
	r, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	b := New(testOptions())
	build := func() *Output {
		out, err := b.Build(r, giveVIPs(r.AutoHosts()), nil)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := build()
	t.Logf("load and build %d: %v", n, time.Since(start))

	text := strings.Replace(files["f00000.yaml"], "service-77.example.com\n  location: MESH_EXTERNAL\n  ports:\n  - number: 443", "service-77.example.com\n  location: MESH_EXTERNAL\n  ports:\n  - number: 8443", 1)
	writeFile(t, filepath.Join(dir, "f00000.yaml"), text)
	start = time.Now()
	if r, err = s.Load(); err != nil {
		t.Fatal(err)
	}
	second := build()
	t.Logf("change one of %d: %v", n, time.Since(start))

	vip := giveVIPs(r.AutoHosts())["service-77.example.com"][0].String()
	checkDelta(t, first.Resources[ClusterType], second.Resources[ClusterType], "-outbound|443||service-77.example.com", "+outbound|8443||service-77.example.com")
	checkDelta(t, first.Resources[ListenerType], second.Resources[ListenerType], "-"+vip+"_443", "+"+vip+"_8443")
	if len(first.Hosts) != n || len(second.Hosts) != n {
		t.Errorf("%d and %d hosts", len(first.Hosts), len(second.Hosts))
	}
}

// checkDelta compares two sets of resources: "-name" is gone, "+name" is new, "~name" differs.
func checkDelta(t *testing.T, old, now []*xds.Stored, want ...string) {
	t.Helper()
	before := map[string][]byte{}
	for _, m := range old {
		before[m.Name] = bodyOf(m)
	}
	var got []string
	for _, m := range now {
		body, was := before[m.Name]
		if !was {
			got = append(got, "+"+m.Name)
		} else if !bytes.Equal(body, bodyOf(m)) {
			got = append(got, "~"+m.Name)
		}
		delete(before, m.Name)
	}
	for name := range maps.Keys(before) {
		got = append(got, "-"+name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("delta %v, want %v", got, want)
	}
}

// TestDeterministic wants the same bytes from two independent sources, whose hashes have different seeds.
func TestDeterministic(t *testing.T) {
	dir := writeFiles(t, manyEntries(50, 7))
	o := testOptions()
	o.AccessLog = mesh.AccessLog{Path: "/dev/stdout", JSON: true}
	var outs []*Output
	for range 2 {
		s, _ := newTestSource(t, dir, o)
		r, err := s.Load()
		if err != nil {
			t.Fatal(err)
		}
		outs = append(outs, build(t, r, o))
	}
	checkDelta(t, outs[0].Resources[ClusterType], outs[1].Resources[ClusterType])
	checkDelta(t, outs[0].Resources[ListenerType], outs[1].Resources[ListenerType])
}

// TestOptionsChangeRebuilds wants no resource of other options from what an earlier build left.
func TestOptionsChangeRebuilds(t *testing.T) {
	r, _ := load(t, se("a", "a.x", 1), testOptions())
	build(t, r, testOptions())
	o := testOptions()
	o.ConnectTimeout = 3 * time.Second
	for _, c := range parseClusters(t, build(t, r, o).Resources[ClusterType]) {
		if c.ConnectTimeout.AsDuration() != o.ConnectTimeout {
			t.Errorf("%s: connect time-out %v", c.Name, c.ConnectTimeout.AsDuration())
		}
	}
}

// BenchmarkLoadBuild reads and builds n ServiceEntries from nothing; heap-MiB is what stays: the Source with its memory
// of the build, the Registry and the Output.
func BenchmarkLoadBuild(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := writeFiles(b, manyEntries(n, 100))
			empty := heap()
			for b.Loop() {
				s, _ := newTestSource(b, dir, testOptions())
				r, err := s.Load()
				if err != nil {
					b.Fatal(err)
				}
				out := build(b, r, testOptions())
				b.StopTimer()
				b.ReportMetric(float64(int64(heap())-int64(empty))/(1<<20), "heap-MiB")
				bytes := 0
				for _, m := range slices.Concat(out.Resources[ClusterType], out.Resources[ListenerType]) {
					bytes += len(bodyOf(m))
				}
				b.ReportMetric(float64(bytes)/float64(n), "resource-B/entry")
				runtime.KeepAlive(s)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkChangeOne changes one of 10,000 ServiceEntries, in files of 100 and in one file of all.
func BenchmarkChangeOne(b *testing.B) {
	for _, perFile := range []int{100, 10000} {
		b.Run(fmt.Sprintf("files-of-%d", perFile), func(b *testing.B) {
			files := manyEntries(10000, perFile)
			dir := writeFiles(b, files)
			s, _ := newTestSource(b, dir, testOptions())
			r, err := s.Load()
			if err != nil {
				b.Fatal(err)
			}
			vips, all := giveVIPs(r.AutoHosts()), New(testOptions())
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				writeFile(b, filepath.Join(dir, "f00000.yaml"), strings.Replace(files["f00000.yaml"], "number: 443", fmt.Sprintf("number: %d", 1000+i), 1))
				b.StartTimer()
				if r, err = s.Load(); err != nil {
					b.Fatal(err)
				}
				if _, err := all.Build(r, vips, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func heap() uint64 {
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
