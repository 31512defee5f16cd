package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// manyEntries is how many ServiceEntries TestDelta has; E2E_ENTRIES overrides it.
const manyEntries = 2000

// loadDeadline bounds the start with many entries. Envoy alone needs 38 s for the resources of
// 10,000 of them on two cores: adding a listener takes longer the more there are.
const loadDeadline = 5 * time.Minute

// changes is how many configuration changes TestNoLeaks makes.
const changes = 100

// envoyStats returns Envoy's counters and gauges that match a regular expression.
func envoyStats(t *testing.T, p *pod, filter string) map[string]int {
	t.Helper()
	return p.EnvoyStats(t, filter)
}

// TestDelta changes one ServiceEntry with a VIP among many, and looks at what Envoy got: the
// resources that changed, in a few kilobytes, and not the rest.
func TestDelta(t *testing.T) {
	t.Parallel()
	many := manyEntries
	if n, err := strconv.Atoi(os.Getenv("E2E_ENTRIES")); err == nil {
		many = n
	}
	p := newPod(t, podOptions{noAgent: true})
	var file strings.Builder
	for i := range many {
		file.WriteString("---\n" + static(fmt.Sprintf("e%d", i), fmt.Sprintf("host-%d.example", i), 80, "TCP", "198.51.100.12", 8012))
	}
	p.c.Write(t, "many.yaml", file.String())
	p.c.Write(t, "one.yaml", static("one", "changing.example", 80, "TCP", "198.51.100.21", 9000))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.21:9000"), lab.Banner("before"))
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.22:9000"), lab.Banner("after"))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReadyWithin(t, loadDeadline)
	vip := p.vip(t, "changing.example", dns.TypeA)
	expect(t, dial(t, p.Pod, netip.AddrPortFrom(vip, 80).String()), "before\r\n")

	const counters = "^(cluster_manager.cluster_(added|modified|removed)|listener_manager.listener_(added|modified|removed)|cluster.xds-grpc.upstream_cx_rx_bytes_total)$"
	before := envoyStats(t, p, counters)
	p.c.Write(t, "one.yaml", static("one", "changing.example", 80, "TCP", "198.51.100.22", 9000))
	eventually(t, "the change is in force", func() error { return reads(p, netip.AddrPortFrom(vip, 80).String(), "after\r\n") })
	after := envoyStats(t, p, counters)
	t.Logf("before: %v, after: %v", before, after)
	changed := 0
	for name, n := range after {
		if strings.Contains(name, "_manager.") {
			changed += n - before[name]
		}
	}
	if changed < 1 || changed > 6 {
		t.Errorf("%d clusters and listeners were added, modified or removed for one endpoint", changed)
	}
	const bytes = "cluster.xds-grpc.upstream_cx_rx_bytes_total"
	all, one := before[bytes], after[bytes]-before[bytes]
	if all < 100*many || one <= 0 || one > 16<<10 {
		t.Errorf("Envoy received %d bytes for everything and %d for the change", all, one)
	}
	if got := p.vip(t, "changing.example", dns.TypeA); got != vip {
		t.Errorf("the VIP moved from %v to %v", vip, got)
	}
}

// reads connects from the pod and returns nil when the server says what is wanted.
func reads(p *pod, addr, want string) error {
	got, err := firstLine(p, addr)
	if err == nil && got != want {
		err = fmt.Errorf("the server says %q", got)
	}
	return err
}

// TestNoLeaks makes many configuration changes of every sort, and counts goroutines and
// descriptors of the agent, and descriptors of Envoy, before and after.
func TestNoLeaks(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": aliyun}})
	change := func(i int) {
		host := fmt.Sprintf("host-%d.example", i)
		switch i % 4 {
		case 0:
			p.c.Write(t, "change.yaml", entry("change", host, 80, "TCP", "DNS"))
		case 1:
			p.c.Write(t, "change.yaml", static("change", host, 8000+i, "HTTP", "198.51.100.12", 8012))
		case 2:
			p.c.Write(t, "change.yaml", "kind: [\n") // a bad one, which changes nothing
			p.c.Write(t, "other.yaml", entry("other", host, 443, "TLS", "DNS"))
		case 3:
			p.c.Remove(t, "change.yaml")
			p.c.Write(t, "other.yaml", entry("other", host, 443, "TLS", "NONE")+"  addresses: [198.51.100.60]\n")
		}
		want := func(host string) error {
			addrs, err := p.Pod.Lookup(host, dns.TypeA)
			if err == nil && len(addrs) == 0 {
				err = fmt.Errorf("no address of %s", host)
			}
			return err
		}
		eventually(t, "change "+strconv.Itoa(i)+" applies", func() error { return want(host) })
	}
	for i := range 8 { // what is made once, is made
		change(i)
	}
	settled := func() usage { return usageOf(t, p) }
	before := settled()
	for i := range changes {
		change(i + 8)
	}
	eventually(t, "nothing has leaked", func() error {
		if after := settled(); after.exceeds(before) {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
}

// usage is what may leak.
type usage struct{ goroutines, agentFDs, envoyFDs int }

// exceeds allows a little for what comes and goes: connections of probes, a query in flight.
func (u usage) exceeds(before usage) bool {
	const slack = 4
	return u.goroutines > before.goroutines+slack || u.agentFDs > before.agentFDs+slack || u.envoyFDs > before.envoyFDs+4*slack
}

func usageOf(t *testing.T, p *pod) usage {
	t.Helper()
	_, body, err := p.Pod.Get("http://127.0.0.1:15020/debug/pprof/goroutine?debug=1")
	must(t, err)
	total := regexp.MustCompile(`goroutine profile: total (\d+)`).FindStringSubmatch(body)
	if total == nil {
		t.Fatalf("no goroutine profile: %.200s", body)
	}
	n, _ := strconv.Atoi(total[1])
	return usage{goroutines: n, agentFDs: descriptors(t, p.agent.PID()), envoyFDs: descriptors(t, p.agent.EnvoyPID())}
}

func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	must(t, err)
	return len(entries)
}
