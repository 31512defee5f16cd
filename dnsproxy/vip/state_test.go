package vip

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

// indexes is an allocation as a test writes it.
type indexes struct {
	assigned, freed map[string]uint32
}

func (v *Pool) indexes() indexes {
	have := indexes{maps.Clone(v.assigned), map[string]uint32{}}
	for h, f := range v.freed {
		have.freed[h] = f.index
	}
	return have
}

func (i indexes) equal(j indexes) bool {
	return maps.Equal(i.assigned, j.assigned) && maps.Equal(i.freed, j.freed)
}

// with makes a pool that has exactly this.
func with(t testing.TB, now *dnstest.Clock, path string, i indexes) *Pool {
	t.Helper()
	v := openVIPs(t, path, "240.240.0.0/28", now)
	v.allocation = newAllocation()
	maps.Copy(v.assigned, i.assigned)
	for h, index := range i.freed {
		v.freed[h] = freed{index, now.Now()}
	}
	if err := v.index(v.allocation); err != nil {
		t.Fatal(err)
	}
	return v
}

type ofHosts = map[string]uint32

func TestVIPsImport(t *testing.T) {
	a := indexes{ofHosts{"a": 1, "b": 2}, ofHosts{"c": 3}}
	for name, tc := range map[string]struct {
		own, other, want indexes
	}{
		"empty takes A":               {indexes{}, a, a},
		"A again":                     {a, a, a},
		"A takes empty and keeps":     {a, indexes{}, a},
		"both empty":                  {indexes{}, indexes{}, indexes{}},
		"A takes B":                   {a, indexes{ofHosts{"b": 5}, nil}, indexes{ofHosts{"a": 1, "b": 5}, ofHosts{"c": 3}}},
		"a host's own index is taken": {a, indexes{ofHosts{"x": 1}, nil}, indexes{ofHosts{"x": 1, "b": 2}, ofHosts{"c": 3}}},
		"by one in quarantine":        {a, indexes{nil, ofHosts{"x": 1}}, indexes{ofHosts{"b": 2}, ofHosts{"x": 1, "c": 3}}},
		"a freed one's is taken":      {a, indexes{ofHosts{"x": 3}, nil}, indexes{ofHosts{"a": 1, "b": 2, "x": 3}, nil}},
		"freed there, assigned here":  {a, indexes{nil, ofHosts{"a": 1}}, indexes{ofHosts{"b": 2}, ofHosts{"a": 1, "c": 3}}},
		"assigned there, freed here":  {a, indexes{ofHosts{"c": 3}, nil}, indexes{ofHosts{"a": 1, "b": 2, "c": 3}, nil}},
		"two change places":           {a, indexes{ofHosts{"a": 2, "b": 1}, nil}, indexes{ofHosts{"a": 2, "b": 1}, ofHosts{"c": 3}}},
	} {
		t.Run(name, func(t *testing.T) {
			now := dnstest.NewClock()
			path := filepath.Join(t.TempDir(), "vips.json")
			own := with(t, now, path, tc.own)
			data := with(t, now, "", tc.other).Export()
			changed, err := own.Import(data)
			if err != nil || !own.indexes().equal(tc.want) || changed != !tc.own.equal(tc.want) {
				t.Fatalf("changed %v, error %v, have %v, want %v", changed, err, own.indexes(), tc.want)
			}
			if _, err := os.Stat(path); (err == nil) != changed {
				t.Errorf("the file: %v, changed: %v", err, changed)
			}
			if changed && !openVIPs(t, path, "240.240.0.0/28", now).indexes().equal(tc.want) {
				t.Error("the file has another allocation")
			}
			if changed, err := own.Import(data); changed || err != nil {
				t.Errorf("again: changed %v, error %v", changed, err)
			}
		})
	}
}

// A quarantine that began in one agent ends in the other at the same time.
func TestVIPsImportQuarantine(t *testing.T) {
	now := dnstest.NewClock()
	hosts := hostNames(6)
	first := openVIPs(t, "", "240.240.0.0/29", now)
	had := assign(t, first, hosts...)
	assign(t, first, hosts[1:]...)
	now.Add(defaultQuarantine / 2)
	second := openVIPs(t, "", "240.240.0.0/29", now)
	if _, err := second.Import(first.Export()); err != nil {
		t.Fatal(err)
	}
	if got := assign(t, second, hosts[1:]...); got[hosts[0]] != nil || !slices.Equal(got[hosts[3]], had[hosts[3]]) {
		t.Errorf("the successor gives %v, the predecessor gave %v", got, had)
	}
	now.Add(defaultQuarantine/2 - time.Second)
	if got, err := second.Assign(append(hosts[1:], "new.example")); err == nil {
		t.Errorf("given within the quarantine: %v", got)
	}
	now.Add(time.Second)
	if got := assign(t, second, append(hosts[1:], "new.example")...); !slices.Equal(got["new.example"], had[hosts[0]]) {
		t.Errorf("after the quarantine: %v", got)
	}
}

func TestVIPsImportDamage(t *testing.T) {
	now := dnstest.NewClock()
	a := indexes{ofHosts{"a": 1, "b": 2}, ofHosts{"c": 3}}
	good := with(t, now, "", indexes{ofHosts{"x": 1}, ofHosts{"y": 2}}).Export()
	bad := map[string][]byte{
		"other range":   openVIPs(t, "", "10.0.0.0/28", now).Export(),
		"other version": []byte(`{"version":2,"base":"240.240.0.0/28"}`),
		"two of one":    []byte(`{"version":1,"base":"240.240.0.0/28","assigned":{"x":5,"y":5}}`),
		"outside":       []byte(`{"version":1,"base":"240.240.0.0/28","assigned":{"x":16}}`),
		"null":          []byte("null"),
		"more behind":   append(slices.Clone(good), '{'),
		"too large":     make([]byte, maxFile+1),
	}
	for n := range good {
		bad[fmt.Sprintf("cut at %d", n)] = good[:n]
	}
	for name, data := range bad {
		path := filepath.Join(t.TempDir(), "vips.json")
		v := with(t, now, path, a)
		if changed, err := v.Import(data); changed || err == nil || !v.indexes().equal(a) {
			t.Errorf("%s: changed %v, error %v, have %v", name, changed, err, v.indexes())
		}
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s: the file was written", name)
		}
	}
}

// Two agents that write one file at the same time leave a whole one.
func TestVIPsShareFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vips.json")
	var agents sync.WaitGroup
	for agent := range 2 {
		v := openVIPs(t, path, "240.240.0.0/16", dnstest.NewClock())
		agents.Go(func() {
			for i := range 50 {
				if _, err := v.Assign(append(hostNames(200*agent+i), fmt.Sprintf("%d.of.%d", i, agent))); err != nil {
					t.Error(err)
				}
				reader, err := Open(Config{Path: path, V4: netip.MustParsePrefix("240.240.0.0/16"), Log: slog.New(slog.DiscardHandler)})
				if err != nil || len(reader.assigned) == 0 {
					t.Errorf("read %d hosts, %v", len(reader.assigned), err)
				}
			}
		})
	}
	agents.Wait()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "vips.json" {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// FuzzVIPImport: whatever comes, hosts keep different addresses, and an error
// changes nothing.
func FuzzVIPImport(f *testing.F) {
	now := dnstest.NewClock()
	own := indexes{ofHosts{"a": 1, "b": 2}, ofHosts{"c": 3}}
	for _, other := range []indexes{own, {}, {ofHosts{"x": 1, "b": 5}, ofHosts{"a": 7}}} {
		f.Add(with(f, now, "", other).Export())
	}
	f.Add([]byte(`{"version":1,"base":"240.240.0.0/28","freed":{"c":{"index":7,"at":"0000-01-01T00:00:00+14:00"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v := with(t, now, "", own)
		changed, err := v.Import(data)
		if err != nil && changed || !changed && !v.indexes().equal(own) {
			t.Fatalf("changed %v, error %v, have %v", changed, err, v.indexes())
		}
		check := newAllocation()
		check.assigned, check.freed = v.assigned, v.freed
		if err := v.index(check); err != nil || !maps.Equal(check.owner, v.owner) {
			t.Fatalf("%v: owners %v, want %v", err, v.owner, check.owner)
		}
		if changed, err := with(t, now, "", indexes{}).Import(v.Export()); err != nil || changed == (len(v.owner) == 0) {
			t.Fatalf("handed on: changed %v, %v", changed, err)
		}
	})
}
