package e2e_test

import (
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

const (
	// outageTime is short for every day; OUTAGE_TIME=60s is the soak.
	outageTime    = 4 * time.Second
	outageTimeEnv = "OUTAGE_TIME"
	// outageTTL, in seconds, is over soon after the outage begins.
	outageTTL = 1
	// queryBudget is what clients wait for an answer or a failure, 5 s, and some time for a busy machine.
	queryBudget = 9 * time.Second
	// outagePeriod is how often each kind of name is asked for.
	outagePeriod = 50 * time.Millisecond
)

// TestDNSOutage takes the only name server away: at once, so that each query is refused, and as one
// that hangs. What was answered once is answered all the while, beyond its TTL; new names fail within
// the time that clients wait; and the first answer of the server counts as soon as it is back.
func TestDNSOutage(t *testing.T) {
	duration := outageTime
	if text := os.Getenv(outageTimeEnv); text != "" {
		var err error
		duration, err = time.ParseDuration(text)
		must(t, err)
	}
	for name, hangs := range map[string]bool{"refuses": false, "hangs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, podOptions{})
			p.dns.SetTTL(outageTTL)
			_, err := p.ask("plain.example")
			must(t, err)
			if hangs {
				p.dns.SetSilent(true)
			} else {
				p.dns.Stop()
			}
			o := &outageLoad{t: t, p: p, end: time.Now().Add(duration)}
			o.every(func(int) { o.known("plain.example") })
			o.every(func(i int) { o.unknown(fmt.Sprintf("new-%d.example", i)) })
			o.wait.Wait()
			t.Logf("%v: %d answers to known names, the slowest after %v; %d failures of new ones, the slowest after %v",
				duration, o.answers, o.slowestKnown, o.failures, o.slowestFailure)

			p.dns.Set("plain.example", "198.51.100.77")
			back := time.Now()
			if hangs {
				p.dns.SetSilent(false)
			} else {
				p.StartDNS(t, map[string][]string{"plain.example": {"198.51.100.77"}})
			}
			eventually(t, "the new address", func() error {
				m, err := p.ask("plain.example")
				if err == nil && (len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "198.51.100.77") {
					err = fmt.Errorf("%v", m)
				}
				return err
			})
			t.Logf("answers anew %v after the server is back", time.Since(back))
		})
	}
}

func (p *pod) ask(host string) (*dns.Msg, error) {
	return p.Pod.Exchange("udp", net.JoinHostPort(lab.NameServer, "53"), host, dns.TypeA)
}

// outageLoad asks on and on until end.
type outageLoad struct {
	t    *testing.T
	p    *pod
	end  time.Time
	wait sync.WaitGroup

	mu                           sync.Mutex
	answers, failures            int
	slowestKnown, slowestFailure time.Duration
}

// every calls ask with a new number each period, without waiting for those before.
func (o *outageLoad) every(ask func(i int)) {
	o.wait.Go(func() {
		tick := time.NewTicker(outagePeriod)
		defer tick.Stop()
		for i := 0; time.Now().Before(o.end); i++ {
			o.wait.Go(func() { ask(i) })
			<-tick.C
		}
	})
}

// known asks for a name that was answered before the outage.
func (o *outageLoad) known(host string) {
	start := time.Now()
	m, err := o.p.ask(host)
	took := time.Since(start)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil || len(m.Answer) != 1 {
		o.t.Errorf("%s in the outage: %v, %v", host, m, err)
	}
	o.answers++
	o.slowestKnown = max(o.slowestKnown, took)
}

// unknown asks for a name that nobody has asked for before.
func (o *outageLoad) unknown(host string) {
	start := time.Now()
	m, err := o.p.ask(host)
	took := time.Since(start)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil || m.Rcode != dns.RcodeServerFailure || took > queryBudget {
		o.t.Errorf("%s in the outage, after %v: %v, %v", host, took, m, err)
	}
	o.failures++
	o.slowestFailure = max(o.slowestFailure, took)
}
