package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
	traffic "understudy.mesh/tests/load"
)

// chaosWorkers is how many requests of one flow there are at a time at most: what a process that
// is killed may have in flight.
const chaosWorkers = 4

// chaosTimeout is when a request counts as lost: long after a machine that does nothing for some
// seconds goes on, for a connection in a socket that nobody reads would wait for ever. A query over
// UDP that nobody answers holds its worker up for as long.
const chaosTimeout = 20 * time.Second

// outsideFlows are the light load from outside on the pod, insideFlows the application's own.
func outsideFlows() []traffic.Flow {
	pod := "http://" + lab.PodIP
	return []traffic.Flow{
		{Name: "inbound", Kind: traffic.HTTP1New, Target: pod + ":8080/", Rate: 60},
		{Name: "inbound kept", Kind: traffic.HTTP1Keep, Target: pod + ":8080/", Rate: 30},
		{Name: "inbound HTTP/2", Kind: traffic.HTTP2, Target: pod + ":8080/", Rate: 30},
		{Name: "stream", Kind: traffic.TCPStream, Target: lab.PodIP + ":9000", Rate: 30},
		{Name: "probe 15020", Kind: traffic.Probe, Target: pod + ":15020/healthz/ready", Rate: 20},
		{Name: "probe 15021", Kind: traffic.Probe, Target: pod + ":15021/healthz/ready", Rate: 20},
		{Name: "scrape 15090", Kind: traffic.Probe, Target: pod + ":15090/stats/prometheus", Rate: 2},
	}
}

func insideFlows(vip string) []traffic.Flow {
	names := []string{"http.example"}
	return []traffic.Flow{
		{Name: "outbound", Kind: traffic.HTTP1New, Target: "http://" + vip + "/", Rate: 30},
		{Name: "DNS", Kind: traffic.DNSUDP, Target: lab.NameServer + ":53", Names: names, Want: "240.240.", Rate: 60, NewSocket: true},
		{Name: "DNS TCP", Kind: traffic.DNSTCP, Target: lab.NameServer + ":53", Names: names, Want: "240.240.", Rate: 10, NewSocket: true},
		{Name: "admin", Kind: traffic.Probe, Target: "http://127.0.0.1:15000/ready", Rate: 20},
	}
}

// chaosLoad is both, each as a process in its namespace.
type chaosLoad struct{ *lab.Traffic }

func (p *chaosPod) startLoad(t *testing.T) *chaosLoad {
	t.Helper()
	sides := []lab.TrafficSide{{From: p.Out, Flows: outsideFlows()}, {From: p.Pod, Flows: insideFlows(p.vip)}}
	for _, side := range sides {
		for i := range side.Flows {
			side.Flows[i].Workers, side.Flows[i].Timeout = chaosWorkers, traffic.Duration(chaosTimeout)
		}
	}
	return &chaosLoad{lab.StartTraffic(t, sides...)}
}

// stop ends the load and returns what it counted.
func (l *chaosLoad) stop(t *testing.T) traffic.Report {
	t.Helper()
	report, err := l.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Flows {
		if f.Total.OK == 0 {
			t.Errorf("the load %q got no answer: %+v", f.Name, f.Failures)
		}
	}
	return report
}

// inFlightOnes is how many requests of one worker a dying Envoy may have: the one that it cut, and
// the next, made in the milliseconds until its sockets are closed.
const inFlightOnes = 2

// toll says how much of the load may fail.
type toll uint8

const (
	nothing toll = iota
	// inFlight: what an Envoy or an agent that was killed had accepted and not answered. Such a
	// connection is reset or ends; a DNS query over UDP that was read is never answered.
	// Whoever connects is never refused, and waits for no other time-out.
	inFlight
	// envoyGone is inFlight, and probes and the admin port, which the agent answers, say meanwhile
	// that there is no Envoy.
	envoyGone
	// everything: the generation that was killed had served for good already, and was the only one
	// that had the sockets.
	everything
)

// judge returns how much was lost, and an error when it is more than may be.
func (may toll) judge(report traffic.Report) (lost []string, err error) {
	return may.judgeTimes(report, 1)
}

// judgeTimes is judge for something that was done several times.
func (may toll) judgeTimes(report traffic.Report, times int) (lost []string, err error) {
	for _, f := range report.Flows {
		for class, n := range f.Total.Failed {
			said := fmt.Sprintf("%s: %d %s", f.Name, n, class)
			lost = append(lost, said)
			forgivable := class == traffic.Reset || class == traffic.EOF || class == traffic.Timeout && f.Kind == traffic.DNSUDP
			forgivable = may == everything || may != nothing && forgivable && n <= uint64(inFlightOnes*chaosWorkers*times)
			if !forgivable && !(may == envoyGone && f.Kind == traffic.Probe && class == traffic.Status5xx) {
				err = errors.Join(err, fmt.Errorf("%s of %d; the first: %v", said, f.Total.OK+f.Total.Failures(), f.Failures[:min(3, len(f.Failures))]))
			}
		}
	}
	slices.Sort(lost)
	return lost, err
}

// check is judge for a test, and says what was lost.
func (may toll) check(t *testing.T, what string, report traffic.Report) {
	t.Helper()
	lost, err := may.judge(report)
	if err != nil {
		t.Errorf("%s: lost what must not be: %v", what, err)
	}
	total := report.Total()
	t.Logf("%s: %d requests answered, lost: [%s]", what, total.OK, strings.Join(lost, ", "))
}
