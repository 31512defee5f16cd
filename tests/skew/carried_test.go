package skew_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/iptables"
	"understudy.mesh/tests/lab"
)

// carried is one thing that moves from a generation to the next, whatever their releases.
type carried struct {
	name string
	// documents are in force from the start. bring makes something new to be carried, while a generation
	// serves and before the hand-off of a number, counted from 0.
	documents []string
	bring     func(t *testing.T, p *pod, handoff int)
	// see returns, as text, all that was brought so far: it must be the same before and after.
	see func(p *pod) (string, error)
	// slowly: what see shows follows the hand-off within seconds.
	slowly bool
}

// everything is what has to be carried in both directions. Whoever adds to what moves adds to it.
func everything(t *testing.T) []carried {
	t.Helper()
	return []carried{keptVIPs(t), cachedAnswers(), countedRequests()}
}

// keptVIPs are addresses that only the history explains: of two hosts that want the same address the
// first had it, and is gone; so that the second cannot have it for ten minutes.
func keptVIPs(t *testing.T) carried {
	t.Helper()
	pairs := rivals(t, handoffs)
	var hosts []string
	return carried{
		name: "VIPs, and those that were freed",
		bring: func(t *testing.T, p *pod, handoff int) {
			t.Helper()
			first, second, file := pairs[handoff][0], pairs[handoff][1], fmt.Sprintf("rivals-%d.yaml", handoff)
			p.write(t, file, entry(first))
			wanted := p.mustLookUp(t, first)
			p.write(t, file, entry(second))
			if got := p.mustLookUp(t, second); got == wanted {
				t.Fatalf("%s has %s, which %s had just now: the test tests nothing", second, got, first)
			}
			hosts = append(hosts, second)
		},
		see: func(p *pod) (string, error) {
			var seen []string
			for _, host := range append([]string{shop}, hosts...) {
				addrs, err := p.lookUp(host)
				if err != nil {
					return "", err
				}
				seen = append(seen, host+" "+addrs)
			}
			return strings.Join(seen, "\n"), nil
		},
	}
}

// rivals returns pairs of hosts, each of which would have the same VIP, were it alone.
func rivals(t *testing.T, n int) (pairs [][2]string) {
	t.Helper()
	const enough = 5000 // names for 65,536 addresses: some hundred pairs
	by := map[netip.Addr]string{}
	for i := 0; len(pairs) < n && i < enough; i++ {
		host := fmt.Sprintf("host-%d.example", i)
		v, err := vip.Open(vip.Config{V4: iptables.VIPRangeV4, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := v.Assign([]string{host})
		if err != nil {
			t.Fatal(err)
		}
		addr := addrs[host][0]
		if rival, taken := by[addr]; taken {
			pairs = append(pairs, [2]string{rival, host})
		}
		by[addr] = host
	}
	if len(pairs) < n {
		t.Fatalf("%d pairs of hosts with one address in %d, want %d", len(pairs), enough, n)
	}
	return pairs
}

// cachedAnswers were asked of the pod's name server once, and are not asked again.
func cachedAnswers() carried {
	const forAnHour = 3600
	var names []string
	return carried{
		name: "the DNS cache",
		bring: func(t *testing.T, p *pod, handoff int) {
			t.Helper()
			name := fmt.Sprintf("cached-%d.test", handoff)
			p.dns.SetTTL(forAnHour)
			p.dns.Set(name, fmt.Sprintf("198.51.100.%d", 100+handoff))
			names = append(names, name)
		},
		see: func(p *pod) (string, error) {
			var seen []string
			for _, name := range names {
				addrs, err := p.Pod.Lookup(name, dns.TypeA)
				if err != nil {
					return "", err
				}
				seen = append(seen, fmt.Sprintf("%s %v, asked upstream %d times", name, addrs, p.dns.Queries(name, "A")))
			}
			return strings.Join(seen, "\n"), nil
		},
	}
}

// countedRequests are Envoy's counters of a host that nobody asks afterwards.
func countedRequests() carried {
	const host = "counted.example"
	return carried{
		name: "Envoy's counters", slowly: true, documents: []string{entry(host)},
		bring: func(t *testing.T, p *pod, handoff int) {
			t.Helper()
			p.dns.Set(host, shopAddr)
			url := "http://" + p.mustLookUp(t, host) + "/"
			for range 3 + handoff {
				lab.Eventually(t, lab.Deadline, "an answer of "+host, func() error { return answers(p.Pod, url) })
			}
		},
		see: func(p *pod) (string, error) {
			status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.AdminPort + "/stats?format=json&filter=" + host + ".*upstream_rq_2xx$")
			if err != nil || status != http.StatusOK {
				return "", fmt.Errorf("Envoy's statistics: %d, %w", status, err)
			}
			var page struct {
				Stats []struct {
					Name  string
					Value int
				}
			}
			err = json.Unmarshal([]byte(body), &page)
			if err == nil && len(page.Stats) == 0 {
				err = fmt.Errorf("no statistics of %s", host)
			}
			return fmt.Sprint(page.Stats), err
		},
	}
}
