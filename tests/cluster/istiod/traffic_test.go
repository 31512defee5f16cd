package istiod_test

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// endpoints is where the hosts of istiod.Hosts are.
var endpoints = []string{"198.51.100.80:80", "198.51.100.81:80"}

// kept is how long a connection lives that is kept.
const kept = load.Duration(2 * time.Second)

// inMesh is a pod whose traffic its Envoy captures, with an application in it and with what serves the mesh's hosts outside.
func inMesh(t *testing.T, slots int, files map[string]string, env ...string) *istiod.Pod {
	t.Helper()
	p := newPod(t, slots, files, env...)
	p.Capture(t)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	for i, address := range append(endpoints, "") {
		listener, name := p.Pod.Listen, "app"
		if address == "" {
			address = ":8080"
		} else {
			listener, name = p.Out.Listen, fmt.Sprintf("host-%d", i)
		}
		ln := listener(t, address)
		go func() { _ = load.ServeHTTP(ctx, ln, name) }()
	}
	return p
}

// startTraffic begins a load on a pod that serves: so many requests a second in all, on kept and on new connections, from outside to
// its application, and from that to two hosts of the mesh, of which one is in the routes of a port and one has a listener.
func startTraffic(t *testing.T, p *istiod.Pod, rate float64) *lab.Traffic {
	t.Helper()
	out := func(host string, kind load.Kind, share float64) load.Flow {
		return load.Flow{Name: host + " " + string(kind), Kind: kind, Target: "http://" + host + "/", Connect: netip.AddrPortFrom(vip(t, p, host), 80).String(), Want: "server=host-", Rate: rate * share, Workers: 8, Life: kept}
	}
	return lab.StartTraffic(t, lab.TrafficSide{From: p.Pod, Flows: []load.Flow{
		out("host-1.mesh.test", load.HTTP1Keep, 0.3), out("host-4.mesh.test", load.HTTP1Keep, 0.3), out("host-1.mesh.test", load.HTTP1New, 0.05), out("host-4.mesh.test", load.HTTP1New, 0.05),
	}}, lab.TrafficSide{From: p.Out, Flows: []load.Flow{
		{Name: "inbound kept", Kind: load.HTTP1Keep, Target: "http://" + lab.PodIP + ":8080/", Want: "server=app", Rate: rate * 0.25, Workers: 8, Life: kept},
		{Name: "inbound new", Kind: load.HTTP1New, Target: "http://" + lab.PodIP + ":8080/", Want: "server=app", Rate: rate * 0.05, Workers: 4},
	}})
}

// mustLoseNothing ends a load and demands that there was one and that nothing of it failed.
func mustLoseNothing(t *testing.T, tr *lab.Traffic) {
	t.Helper()
	report, err := tr.Stop()
	if err != nil {
		t.Fatal(err)
	}
	total := report.Total()
	t.Logf("%d requests in %.0f s (%.0f a second), %d never made, slowest %v", total.OK, report.Elapsed, float64(total.OK)/report.Elapsed, total.Skipped, total.Latency.Max())
	if total.OK == 0 || total.Failures() > 0 {
		t.Errorf("%d requests, %d of them failed", total.OK, total.Failures())
	}
	for _, f := range report.Flows {
		for _, failure := range f.Failures {
			t.Errorf("%s: %v", f.Name, failure)
		}
	}
}

// vip is the address at which the pod's applications find a host of the mesh.
func vip(t *testing.T, p *istiod.Pod, host string) (addr netip.Addr) {
	t.Helper()
	lab.Eventually(t, lab.SettleWithin, "the pod knows "+host, func() (err error) {
		addr, err = lookup(p, host)
		return err
	})
	return addr
}

func lookup(p *istiod.Pod, host string) (netip.Addr, error) {
	addrs, err := p.Pod.Lookup(host, dns.TypeA)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(addrs) != 1 || !netip.MustParsePrefix("240.240.0.0/16").Contains(addrs[0]) {
		return netip.Addr{}, fmt.Errorf("%s has %v, want a VIP", host, addrs)
	}
	return addrs[0], nil
}

// metric is the agent's own, by name and labels as they are written.
func metric(t *testing.T, p *istiod.Pod, name string) (value float64) {
	t.Helper()
	status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/stats/prometheus")
	if err != nil || status != http.StatusOK {
		t.Fatalf("the agent's metrics: %d, %v", status, err)
	}
	found := regexp.MustCompile(`(?m)^istio_agent_` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(body)
	if found == nil {
		t.Fatalf("no metric %s in:\n%s", name, strings.Join(regexp.MustCompile(`(?m)^istio_agent_.*$`).FindAllString(body, -1), "\n"))
	}
	value, err = strconv.ParseFloat(found[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}
