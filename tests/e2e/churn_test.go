package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

const (
	// churnEvery is a hundred changes a minute.
	churnEvery = 600 * time.Millisecond
	// churnKept is how many of the hosts that come are there at a time.
	churnKept = 5
	// churnGrowth is what memory may have more at the end than when a fifth of the changes were made, churnMany or more of them:
	// heaps fill up first.
	churnGrowth = 1.25
	churnMany   = 500
)

// manyHTTP is n HTTP hosts, h-0.example and so on, which lead to one server; they are in several parts of their port's routes.
func manyHTTP(n int, server string, port int) string {
	docs := make([]string, n)
	for i := range docs {
		docs[i] = static(fmt.Sprintf("h-%d", i), fmt.Sprintf("h-%d.example", i), 80, "HTTP", server, port)
	}
	return documents(docs...)
}

// TestSharedChurn has hosts come and go on a port of many, $CHANGES of them, a hundred a minute, while a neighbour's connection
// and new ones are used. Nothing fails, and nothing grows.
func TestSharedChurn(t *testing.T) {
	t.Parallel()
	const many = 600
	changes := int(number(t, "CHANGES", 20))
	p := newPod(t, podOptions{files: map[string]string{
		"many.yaml": manyHTTP(many, "198.51.100.12", 8004), "a.yaml": static("a", "a.example", 80, "HTTP", "198.51.100.12", 8001),
	}})
	serveSharing(t, p)
	load := startNeighbours(t, p, netip.AddrPortFrom(p.vip(t, "a.example", dns.TypeA), 80).String())
	<-time.After(churnKept * churnEvery)
	calm := load.take()
	var before usage
	var memory int
	tick := time.NewTicker(churnEvery)
	defer tick.Stop()
	for i := range changes {
		if i == changes/5 {
			before, memory = usageOf(t, p), rssOf(t, p.agent.PID())+rssOf(t, p.agent.EnvoyPID())
		}
		host := fmt.Sprintf("churn-%d.example", i)
		p.c.Write(t, fmt.Sprintf("churn-%d.yaml", i%churnKept), static(fmt.Sprintf("churn-%d", i%churnKept), host, 80, "HTTP", "198.51.100.12", 8002))
		<-tick.C
	}
	last := fmt.Sprintf("churn-%d.example", changes-1)
	eventually(t, "the last host that came has a name", func() error {
		if addrs, err := p.Pod.Lookup(last, dns.TypeA); err != nil || len(addrs) == 0 {
			return fmt.Errorf("%v, %v", addrs, err)
		}
		return nil
	})
	if got := get(t, p.dialHost(t, last, 80), last); got["server"] != "b" {
		t.Errorf("the last host that came: %v", got)
	}
	busy := load.take()
	load.stop(t)
	t.Logf("99 of 100 requests within %v before the changes, %v while there were %d", p99(calm), p99(busy), changes)
	eventually(t, "nothing has leaked", func() error {
		if after := usageOf(t, p); after.exceeds(before) {
			return fmt.Errorf("before %+v, after %+v", before, after)
		}
		return nil
	})
	after := rssOf(t, p.agent.PID()) + rssOf(t, p.agent.EnvoyPID())
	t.Logf("agent and Envoy: %d KiB after a fifth of the changes, %d at the end", memory>>10, after>>10)
	if changes >= churnMany && float64(after) > churnGrowth*float64(memory) {
		t.Errorf("memory grew from %d KiB to %d", memory>>10, after>>10)
	}
	stats := envoyStats(t, p, "^listener_manager.(total_filter_chains_draining|total_listeners_draining)$")
	if stats["listener_manager.total_filter_chains_draining"]+stats["listener_manager.total_listeners_draining"] != 0 {
		t.Errorf("Envoy drains something: %v", stats)
	}
}

// neighbours is the load on a host: one connection that is kept, and new ones.
type neighbours struct {
	wg      sync.WaitGroup
	stopped chan struct{}

	mu     sync.Mutex
	took   []time.Duration
	failed []error
}

func startNeighbours(t *testing.T, p *pod, addr string) *neighbours {
	t.Helper()
	l := &neighbours{stopped: make(chan struct{})}
	kept := dial(t, p.Pod, addr)
	replies := bufio.NewReader(kept)
	for _, ask := range []func() error{
		func() error { return askOn(kept, replies) },
		func() error { return answers(p.Pod, "http://"+addr+"/") },
	} {
		l.wg.Go(func() { l.repeat(ask) })
	}
	return l
}

func askOn(c net.Conn, replies *bufio.Reader) error {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
		return err
	}
	resp, err := http.ReadResponse(replies, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if resp.Close || resp.StatusCode != http.StatusOK {
		err = errors.Join(err, fmt.Errorf("status %d, close %t: %.100q", resp.StatusCode, resp.Close, body))
	}
	return err
}

func (l *neighbours) repeat(ask func() error) {
	tick := time.NewTicker(outboundEvery)
	defer tick.Stop()
	for {
		begin := time.Now()
		err := ask()
		l.mu.Lock()
		l.took = append(l.took, time.Since(begin))
		if err != nil {
			l.failed = append(l.failed, err)
		}
		l.mu.Unlock()
		select {
		case <-l.stopped:
			return
		case <-tick.C:
		}
	}
}

// take returns how long requests took since the last call.
func (l *neighbours) take() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.took
	l.took = nil
	return out
}

func (l *neighbours) stop(t *testing.T) {
	t.Helper()
	close(l.stopped)
	l.wg.Wait()
	if len(l.failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(l.failed), l.failed[0])
	}
}

func p99(took []time.Duration) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[len(took)*99/100]
}

// arrivals has hosts come one after the other, and asks each as soon as it has a name.
func (p *slotPod) arrivals(t *testing.T) (stop func()) {
	t.Helper()
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			name := fmt.Sprintf("new-%d", i)
			p.slots.Write(t, name+".yaml", static(name, name+".example", 80, "HTTP", "198.51.100.11", 80))
			var addrs []netip.Addr
			for len(addrs) == 0 {
				select {
				case <-stopped:
					return
				case <-time.After(time.Millisecond):
				}
				addrs, _ = p.Pod.Lookup(name+".example", dns.TypeA)
			}
			if err := answers(p.Pod, "http://"+addrs[0].String()+"/"); err != nil {
				t.Errorf("%s.example, just named %v: %v", name, addrs[0], err)
			}
		}
	}()
	return func() { close(stopped); <-ended }
}

// TestUpgradeShapes hands over from one shape of the listeners to the other under load: nothing fails, the hosts answer, and no
// host that comes meanwhile has a name before both Envoys lead it somewhere. With $HOSTS there are so many, and both generations
// have shared listeners.
func TestUpgradeShapes(t *testing.T) {
	t.Parallel()
	cases, many := [][2]string{{"shared", "each"}, {"each", "shared"}}, int(number(t, "HOSTS", 0))
	if many > 0 {
		cases = [][2]string{{"shared", "shared"}}
	} else {
		many = 600
	}
	for _, shapes := range cases {
		t.Run(shapes[0]+" to "+shapes[1], func(t *testing.T) {
			t.Parallel()
			p := newSlotPod(t, lab.SlotsOptions{})
			p.slots.Write(t, "many.yaml", manyHTTP(many, "198.51.100.11", 80))
			startShape := func(slot int, image lab.Image, shape string) {
				t.Helper()
				must(t, p.slot(slot).Start(image, fmt.Sprintf("%s=%d", lab.VersionEnv, slot+1), fmt.Sprintf("%s=%d", lab.VersionAltEnv, slot), "UNDERSTUDY_LISTENERS="+shape))
				lab.Eventually(t, loadDeadline, shape+" listeners serve", func() error { return p.inRole(slot, roleServing) })
			}
			startShape(0, p.older, shapes[0])
			lab.Eventually(t, loadDeadline, "the pod is ready", p.ready)
			load, stop := startLoad(t, p), p.arrivals(t)
			startShape(1, p.newer, shapes[1])
			stop()
			for _, host := range []string{"h-0.example", fmt.Sprintf("h-%d.example", many-1)} {
				vip := (&pod{Lab: p.Lab}).vip(t, host, dns.TypeA)
				if err := answers(p.Pod, "http://"+vip.String()+"/"); err != nil {
					t.Errorf("%s: %v", host, err)
				}
			}
			load.check(t)
		})
	}
}
