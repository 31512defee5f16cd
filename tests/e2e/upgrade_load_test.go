package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// What the load does, and how often. It is light: what matters here is that not one request
// fails, in as many labs at once as the tests run in parallel.
const (
	inboundEvery  = 20 * time.Millisecond
	outboundEvery = 50 * time.Millisecond
	dnsEvery      = 25 * time.Millisecond
	probeEvery    = 100 * time.Millisecond
)

// load is a pod's clients: new connections from outside to the application, from the application
// to a host of the mesh by its VIP, DNS queries, and the probes.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	done     map[string]int
	failed   map[string]int
	failures []string
}

// startLoad begins; the test fails when anything failed until check or the test's end.
func startLoad(t *testing.T, p *slotPod) *load {
	t.Helper()
	return startLoadAt(t, p, p.address)
}

// startLoadAt is startLoad with clients from outside that connect to another address: the pod's own, when a slot that fails is to take the
// pod out of its Service.
func startLoadAt(t *testing.T, p *slotPod, address string) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, done: map[string]int{}, failed: map[string]int{}}
	vip := (&pod{Lab: p.Lab}).vip(t, "http.example", dns.TypeA)
	type source struct {
		name  string
		every time.Duration
		do    func() error
	}
	sources := []source{
		{"inbound", inboundEvery, func() error { return answers(p.Out, "http://"+address+":8080/") }},
		{"outbound", outboundEvery, func() error { return answers(p.Pod, "http://"+vip.String()+"/") }},
		{"DNS", dnsEvery, func() error { return resolves(p.Pod) }},
		{"admin", probeEvery, func() error { return answers(p.Pod, "http://127.0.0.1:"+lab.AdminPort+"/ready") }},
	}
	for _, port := range p.probes {
		sources = append(sources, source{"probe " + port, probeEvery, func() error {
			return answers(p.Out, "http://"+lab.PodIP+":"+port+"/healthz/ready")
		}})
	}
	for _, s := range sources {
		l.wg.Go(func() { l.repeat(ctx, s.name, s.every, s.do) })
	}
	t.Cleanup(func() { l.check(t) })
	return l
}

func (l *load) repeat(ctx context.Context, name string, every time.Duration, do func() error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		begin := time.Now()
		err := do()
		l.mu.Lock()
		l.done[name]++
		if err != nil {
			l.failed[name]++
			l.failures = append(l.failures, fmt.Sprintf("%s %s, begun %s: %v", time.Now().Format("15:04:05.000"), name, begin.Format("15:04:05.000"), err))
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// stop ends the load and returns how many requests were made and what failed.
func (l *load) stop() (requests int, failures []string) {
	l.cancel()
	l.wg.Wait()
	for _, n := range l.done {
		requests += n
	}
	return requests, l.failures
}

// check ends the load and demands that nothing failed.
func (l *load) check(t *testing.T) {
	t.Helper()
	requests, failures := l.stop()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests failed (%v of %v), the first: %q", len(failures), requests, l.failed, l.done, failures[:min(len(failures), 5)])
	}
	if requests == 0 {
		t.Error("there was no load")
	}
	l.failures = nil // said once
}

// answers demands a 200 on a connection of its own.
func answers(n *lab.Namespace, url string) error {
	resp, err := n.Client().Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", resp.StatusCode, body)
	}
	return err
}

// resolves looks a host of the mesh up over UDP, as an application does.
func resolves(n *lab.Namespace) error {
	conn, err := n.Dial(context.Background(), "udp", lab.NameServer+":53")
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(lab.Deadline))
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion("http.example.", dns.TypeA)); err != nil {
		return err
	}
	m, err := c.ReadMsg()
	if err == nil && len(m.Answer) == 0 {
		err = fmt.Errorf("no address: %v", m)
	}
	return err
}
