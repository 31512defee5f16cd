package vip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

func openVIPs(t testing.TB, path, v4 string, now *dnstest.Clock) *Pool {
	t.Helper()
	v, err := Open(Config{
		Path: path, V4: netip.MustParsePrefix(v4), V6: netip.MustParsePrefix("2001:2::/48"), IPv6: true,
		Now: now.Now, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func assign(t testing.TB, v *Pool, hosts ...string) map[string][]netip.Addr {
	t.Helper()
	got, err := v.Assign(hosts)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func hostNames(n int) []string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf("host-%d.example", i))
	}
	return list
}

func TestVIPsStable(t *testing.T) {
	now, dir := dnstest.NewClock(), t.TempDir()
	path := filepath.Join(dir, "vips.json")
	v := openVIPs(t, path, "240.240.0.0/16", now)
	hosts := hostNames(5000)
	first := assign(t, v, hosts...)
	seen := map[netip.Addr]string{}
	for h, addrs := range first {
		if len(addrs) != 2 || !addrs[0].Is4() || !addrs[1].Is6() {
			t.Fatalf("%s has %v", h, addrs)
		}
		b4, b6 := addrs[0].As4(), addrs[1].As16()
		if b4[3] == 0 || b4[3] == 255 || b4[2] != b6[14] || b4[3] != b6[15] || !netip.MustParsePrefix("240.240.0.0/16").Contains(addrs[0]) {
			t.Errorf("%s has %v", h, addrs)
		}
		if other := seen[addrs[0]]; other != "" {
			t.Errorf("%s and %s have %s", h, other, addrs[0])
		}
		seen[addrs[0]] = h
	}
	same := func(what string, got map[string][]netip.Addr) {
		t.Helper()
		for h, addrs := range got {
			if want, ok := first[h]; ok && !slices.Equal(addrs, want) {
				t.Fatalf("%s moved %s from %v to %v", what, h, want, addrs)
			}
		}
	}
	slices.Reverse(hosts)
	same("another order", assign(t, v, hosts...))
	same("others' departure", assign(t, v, hosts[:10]...))
	same("arrival of more", assign(t, v, append(hosts, hostNames(9000)...)...))
	same("a restart", assign(t, openVIPs(t, path, "240.240.0.0/16", now), hosts...))
	same("a restart without the file", assign(t, openVIPs(t, "", "240.240.0.0/16", now), hosts...))

	// A subset alone, without the file: the same wherever no one collides.
	alone, moved := assign(t, openVIPs(t, "", "240.240.0.0/16", now), hosts[:500]...), 0
	for h, addrs := range alone {
		if !slices.Equal(addrs, first[h]) {
			moved++
		}
	}
	if moved > 50 {
		t.Errorf("%d of 500 hosts depend on who else is there", moved)
	}
}

func TestVIPsQuarantine(t *testing.T) {
	now := dnstest.NewClock()
	path := filepath.Join(t.TempDir(), "vips.json")
	// .1 to .6: exactly six.
	v := openVIPs(t, path, "240.240.0.0/29", now)
	hosts := hostNames(6)
	first := assign(t, v, hosts...)
	assign(t, v, hosts[1:]...)
	v = openVIPs(t, path, "240.240.0.0/29", now) // the time of freeing is in the file
	now.Add(defaultQuarantine - time.Second)
	got, err := v.Assign(append(hosts[1:], "new.example"))
	if err == nil || !strings.Contains(err.Error(), "new.example") || len(got) != 5 || got["new.example"] != nil {
		t.Fatalf("within the quarantine: %v, %v", got, err)
	}
	if s := v.Stats(); s != (Stats{Capacity: 6, Assigned: 5, Quarantined: 1, Pending: 1, Exhausted: 1}) {
		t.Errorf("%+v", s)
	}
	if got := assign(t, v, hosts...); !slices.Equal(got[hosts[0]], first[hosts[0]]) {
		t.Errorf("the host that came back has %v, it had %v", got[hosts[0]], first[hosts[0]])
	}
	assign(t, v, hosts[1:]...)
	now.Add(defaultQuarantine)
	if got := assign(t, v, append(hosts[1:], "new.example")...); !slices.Equal(got["new.example"], first[hosts[0]]) {
		t.Errorf("after the quarantine: %v, want %v", got["new.example"], first[hosts[0]])
	}
	if s := v.Stats(); s.Pending != 0 || s.Assigned != 6 {
		t.Errorf("%+v", s)
	}
}

// The same state again does not touch the files, and a change not the large one.
func TestVIPsWriteOnlyChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vips.json")
	now := dnstest.NewClock()
	v := openVIPs(t, path, "240.240.0.0/16", now)
	files := func() string {
		var all []byte
		for _, name := range []string{path, path + ".journal"} {
			data, err := os.ReadFile(name)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			all = append(append(all, data...), '|')
		}
		return string(all)
	}
	assign(t, v, "a.example", "b.example")
	before := files()
	assign(t, v, "B.example.", "a.example")
	if files() != before {
		t.Error("written without a change")
	}
	want := assign(t, v, "a.example", "c.example")
	snapshot, records, _ := strings.Cut(files(), "|")
	if oldSnapshot, oldRecords, _ := strings.Cut(before, "|"); snapshot != oldSnapshot || records == oldRecords {
		t.Errorf("a change was written as %q and %q, before it was %q", snapshot, records, before)
	}
	if got := assign(t, openVIPs(t, path, "240.240.0.0/16", now), "a.example", "c.example"); !maps.EqualFunc(got, want, slices.Equal[[]netip.Addr]) {
		t.Errorf("the files have %v, want %v", got, want)
	}
	left, err := filepath.Glob(path + ".*")
	if err != nil || len(left) > 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestVIPsBadFile(t *testing.T) {
	now := dnstest.NewClock()
	ok := `"version":1,"base":"240.240.0.0/16"`
	for name, content := range map[string]string{
		"empty":          "",
		"not json":       "{",
		"other version":  `{"version":2,"base":"240.240.0.0/16"}`,
		"other range":    `{"version":1,"base":"10.0.0.0/16"}`,
		"two of one":     `{` + ok + `,"assigned":{"a":5,"b":5}}`,
		"freed and not":  `{` + ok + `,"assigned":{"a":5},"freed":{"a":{"index":6,"at":"2026-01-01T00:00:00Z"}}}`,
		"outside":        `{` + ok + `,"assigned":{"a":70000}}`,
		"network":        `{` + ok + `,"assigned":{"a":256}}`,
		"negative":       `{` + ok + `,"assigned":{"a":-1}}`,
		"upper case":     `{` + ok + `,"assigned":{"A":5}}`,
		"freed, no time": `{` + ok + `,"freed":{"a":{"index":5,"at":"x"}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vips.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			got := assign(t, openVIPs(t, path, "240.240.0.0/16", now), "a")
			want := assign(t, openVIPs(t, "", "240.240.0.0/16", now), "a")
			if !maps.EqualFunc(got, want, slices.Equal[[]netip.Addr]) {
				t.Errorf("got %v, want what the hash says: %v", got, want)
			}
			if bad, err := os.ReadFile(path + setAside); err != nil || string(bad) != content {
				t.Errorf("not set aside: %q, %v", bad, err)
			}
			if data, err := os.ReadFile(path); err != nil || !json.Valid(data) {
				t.Errorf("no new file: %q, %v", data, err)
			}
		})
	}
}

func TestVIPsOddPlaces(t *testing.T) {
	dir := t.TempDir()
	fifo, sub, big := filepath.Join(dir, "fifo"), filepath.Join(dir, "dir"), filepath.Join(dir, "big")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, maxFile+1); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, sub, big, filepath.Join(dir, "missing", "vips.json")} {
		log := new(dnstest.Log)
		v, err := Open(Config{Path: path, V4: netip.MustParsePrefix("240.240.0.0/16"), Log: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		assign(t, v, "a")
		assign(t, v, "a", "b")
		if n := strings.Count(log.String(), "cannot write"); n > 1 {
			t.Errorf("%s: %d lines about writing:\n%s", path, n, log)
		}
		if strings.Contains(path, "missing") && v.Stats().WriteErrors != 2 {
			t.Errorf("write errors: %d", v.Stats().WriteErrors)
		}
	}
}

func TestOpenVIPsRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"none":       {},
		"v6 as v4":   {V4: netip.MustParsePrefix("2001:2::/48")},
		"too large":  {V4: netip.MustParsePrefix("240.0.0.0/8")},
		"too small":  {V4: netip.MustParsePrefix("240.240.0.0/30")},
		"no v6":      {V4: netip.MustParsePrefix("240.240.0.0/16"), IPv6: true},
		"v6 smaller": {V4: netip.MustParsePrefix("240.240.0.0/16"), V6: netip.MustParsePrefix("2001:2::/120"), IPv6: true},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzVIPFile: whatever is in the file, no two hosts get one address.
func FuzzVIPFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"base":"240.240.0.0/28","assigned":{"a":5,"b":6},"freed":{"c":{"index":7,"at":"2026-01-02T03:00:00Z"}}}`))
	f.Add([]byte(`{"version":1,"base":"240.240.0.0/28","assigned":{"a":5},"freed":{"a":{"index":7,"at":"2026-01-02T03:00:00Z"}}}`))
	f.Add([]byte(`{"version":1,"base":"240.240.0.0/28","freed":{"c":{"index":7,"at":"9999-01-02T03:00:00Z"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		now := dnstest.NewClock()
		v := openVIPs(t, "", "240.240.0.0/28", now)
		if a, err := v.decode(data); err == nil {
			v.allocation = a
		}
		for _, hosts := range [][]string{{"a", "b", "x"}, {"c", "x"}, {"a", "b", "c", "d", "x"}} {
			given, err := v.Assign(hosts)
			seen := map[netip.Addr]bool{}
			for h, addrs := range given {
				if seen[addrs[0]] || !v.config.V4.Contains(addrs[0]) || !slices.Contains(hosts, h) {
					t.Fatalf("%s has %v of %v", h, addrs, given)
				}
				seen[addrs[0]] = true
			}
			if err == nil && len(given) != len(hosts) {
				t.Fatalf("%v for %v and no error", given, hosts)
			}
			data, err := v.encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := openVIPs(t, "", "240.240.0.0/28", now).decode(data); err != nil {
				t.Fatalf("cannot read back %s: %v", data, err)
			}
			now.Add(defaultQuarantine / 2)
		}
	})
}
