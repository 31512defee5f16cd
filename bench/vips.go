package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/iptables"
	"understudy.mesh/tests/lab"
)

// vipHosts are the numbers of hosts with a VIP.
var vipHosts = []int{10_000, 50_000}

// vipChanges is how many changes one sample is the mean of.
const vipChanges = 20

// benchVIPs changes one host of many: what the allocation costs with a journal, against the same with
// the whole file written each time.
func benchVIPs(t lab.T, s settings) (results []result) {
	for _, n := range vipHosts {
		var journal, whole []float64
		for range s.rounds {
			journal = append(journal, changeVIPs(t, n, false))
			whole = append(whole, changeVIPs(t, n, true))
		}
		results = append(results, measured(fmt.Sprintf("one of %d VIPs changes: assigned and on disk", n), "ms", journal).
			against("the whole file written each time", whole))
	}
	return results
}

// changeVIPs returns the milliseconds that a change takes.
func changeVIPs(t lab.T, n int, whole bool) float64 {
	dir, err := os.MkdirTemp("", "understudy-bench-vips-")
	if err != nil {
		t.Fatalf("make a directory for the VIP file: %v", err)
	}
	defer os.RemoveAll(dir)
	vips, err := vip.Open(vip.Config{
		Path: filepath.Join(dir, "vips.json"), V4: iptables.VIPRangeV4, V6: iptables.VIPRangeV6, IPv6: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatalf("open the VIP file: %v", err)
	}
	hosts := make([]string, n)
	for i := range hosts {
		hosts[i] = fmt.Sprintf("service-%d.namespace-%d.example.com", i, i%100)
	}
	change := func(name string) {
		hosts[0] = name
		if _, err := vips.Assign(hosts); err != nil {
			t.Fatalf("assign VIPs: %v", err)
		}
		if whole {
			vips.Compact()
		}
	}
	change("first.example.com") // writes the file
	begin := time.Now()
	for i := range vipChanges {
		change(fmt.Sprintf("changed-%d.example.com", i))
	}
	return milliseconds(time.Since(begin)) / vipChanges
}
