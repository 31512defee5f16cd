package vip

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"understudy.mesh/tests/dnstest"
)

var compareVIPs = cmp.Options{cmpopts.EquateEmpty(), cmpopts.EquateComparable(netip.Addr{})}

// What is listed stays over a restart and a hand-off, and follows what hosts do.
func TestVIPsList(t *testing.T) {
	now := dnstest.NewClock()
	path := filepath.Join(t.TempDir(), "vips.json")
	v := openVIPs(t, path, "240.240.0.0/24", now)
	check := func(what string, v *Pool, want ...VIP) {
		t.Helper()
		got := v.List()
		for i := range got {
			if len(got[i].Addrs) != 2 || !got[i].Addrs[0].Is4() || !got[i].Addrs[1].Is6() {
				t.Errorf("%s: %s has %v", what, got[i].Host, got[i].Addrs)
			}
			got[i].Addrs = nil
		}
		if diff := cmp.Diff(want, got, compareVIPs); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", what, diff)
		}
	}
	check("nothing", v)
	start := now.Now()
	assign(t, v, "b.example", "a.example", "c.example")
	now.Add(time.Minute)
	left := now.Now()
	assign(t, v, "b.example")
	now.Add(time.Minute)
	assign(t, v, "b.example", "c.example")
	want := []VIP{
		{Host: "b.example", Since: start}, {Host: "c.example", Since: now.Now()},
		{Host: "a.example", Freed: left, Usable: left.Add(defaultQuarantine)},
	}
	check("as it is", v, want...)
	check("after a restart", openVIPs(t, path, "240.240.0.0/24", now), want...)
	next := openVIPs(t, "", "240.240.0.0/24", now)
	if _, err := next.Import(v.Export()); err != nil {
		t.Fatal(err)
	}
	check("after a hand-off", next, want...)

	// A successor that has given addresses of its own keeps since when.
	other := openVIPs(t, "", "240.240.0.0/24", now)
	assign(t, other, "z.example")
	since := now.Now()
	now.Add(time.Minute)
	if _, err := other.Import(v.Export()); err != nil {
		t.Fatal(err)
	}
	check("beside its own", other, want[0], want[1], VIP{Host: "z.example", Since: since}, want[2])
}

// A file of an earlier release, or one that tells of the future, is listed all the same.
func TestVIPsListOldFile(t *testing.T) {
	now := dnstest.NewClock()
	path := filepath.Join(t.TempDir(), "vips.json")
	const file = `{"version":1,"base":"240.240.0.0/24","assigned":{"a":5,"b":6,"c":7},"since":{"6":99999999999999,"7":-1,"8":1,"4294967295":1}}`
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	v := openVIPs(t, path, "240.240.0.0/24", now)
	list := v.List()
	if len(list) != 3 || !list[0].Since.IsZero() || !list[1].Since.Equal(now.Now()) || !list[2].Since.IsZero() {
		t.Errorf("%+v", list)
	}
	if len(v.since) != 1 {
		t.Errorf("kept %v", v.since)
	}
	out, err := json.Marshal(list[0])
	if err != nil || strings.Contains(string(out), "since") || !strings.Contains(string(out), `"addresses":["240.240.0.5","2001:2::5"]`) {
		t.Errorf("%s, %v", out, err)
	}
}
