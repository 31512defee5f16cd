package agent

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/config"
)

var failingHandoffs = flag.Int("failing-handoffs", 8, "how many hand-offs fail in TestAnswersComeFromTheEnvoyThatServes")

// askEvery is the pause between two questions to one port.
const askEvery = 5 * time.Millisecond

const answeredHost = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: x}
spec: {hosts: [x.example], addresses: [192.0.2.7], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 192.0.2.8}]}
`

// TestAnswersComeFromTheEnvoyThatServes asks each port of the agent's all the time, while newcomers take over
// whose Envoys die before the end of the probation: whoever accepts, the answer is that of the Envoy that serves.
func TestAnswersComeFromTheEnvoyThatServes(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.cfg.MergeEnvoyStats = true
	if err := os.WriteFile(filepath.Join(p.cfg.ConfigDir, "x.yaml"), []byte(answeredHost), 0o600); err != nil {
		t.Fatal(err)
	}
	a := p.start("a")
	a.settles(handoff.RoleServing)
	in := newInquiry(t.Context(), questions(&p.cfg))
	defer in.end()
	for i := range *failingHandoffs {
		b := p.start(fmt.Sprint("b", i))
		waitFor(t, "the newcomer to answer", func() bool { s := b.current(); return s != nil && s.Accepting() })
		<-time.After(rand.N(20 * time.Millisecond))
		b.signalEnvoy(syscall.SIGKILL)
		waitFor(t, "the attempt to end", func() bool { return b.lastAttempt().Result != resultRunning })
		if b.lastAttempt().Result == resultSuccess {
			t.Log("the machine stood still for longer than the probation: this was no hand-off that failed")
			return
		}
		b.kill()
		a.becomes(handoff.RoleServing)
		if failures := in.failures(); len(failures) > 0 {
			t.Fatalf("hand-off %d: %d wrong answers, the first: %q", i+1, len(failures), failures[:min(3, len(failures))])
		}
	}
	in.end()
	if failures := in.failures(); len(failures) > 0 {
		t.Errorf("wrong answers: %q", failures)
	}
	for what, n := range in.asked {
		if n.Load() == 0 {
			t.Errorf("%s: not asked", what)
		}
	}
}

// inquiry asks questions all the time, each after its answer to the one before.
type inquiry struct {
	asked  map[string]*atomic.Int64
	asking sync.WaitGroup
	stop   context.CancelFunc

	mu    sync.Mutex
	wrong []string
}

func newInquiry(ctx context.Context, questions map[string]func() error) *inquiry {
	in := &inquiry{asked: map[string]*atomic.Int64{}}
	ctx, in.stop = context.WithCancel(ctx)
	for what, ask := range questions {
		n := new(atomic.Int64)
		in.asked[what] = n
		in.asking.Go(func() {
			for ctx.Err() == nil {
				if err := ask(); err != nil {
					in.mu.Lock()
					in.wrong = append(in.wrong, fmt.Sprintf("%s, question %d: %v", what, n.Load()+1, err))
					in.mu.Unlock()
				}
				n.Add(1)
				<-time.After(askEvery)
			}
		})
	}
	return in
}

func (in *inquiry) end() {
	in.stop()
	in.asking.Wait()
}

func (in *inquiry) failures() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Clone(in.wrong)
}

// TestNewcomerIsAskedItself: whoever asks a newcomer over its control socket before it answers for the pod means
// it, and is not kept waiting.
func TestNewcomerIsAskedItself(t *testing.T) {
	t.Parallel()
	p := newPod(t)
	p.start("a").settles(handoff.RoleServing)
	b := p.start("b", envoyThat(func(f *fakeEnvoy) { f.Unready = true }))
	waitFor(t, "the newcomer to start its Envoy", func() bool { return b.current() != nil })
	waitFor(t, "the newcomer to say that it waits for its Envoy", func() bool { // which is noted once it is started
		w := httptest.NewRecorder()
		b.current().Status.Local().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz/ready", nil))
		return w.Code == http.StatusServiceUnavailable && strings.Contains(w.Body.String(), "envoy: waiting")
	})
}

// questions are one for each port, and each kind of answer; each is asked on a connection of its own.
func questions(c *config.Config) map[string]func() error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: deadline}
	get := func(port uint16, path, want string) func() error {
		return func() error {
			resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want)) {
				err = fmt.Errorf("%s: %.300s", resp.Status, body)
			}
			return err
		}
	}
	ask := func(network string) func() error {
		return func() error {
			client := &dns.Client{Net: network, Timeout: deadline}
			m, _, err := client.Exchange(new(dns.Msg).SetQuestion("x.example.", dns.TypeA), c.DNSAddrs[0].String())
			if err == nil && len(m.Answer) != 1 {
				err = fmt.Errorf("%v", m)
			}
			return err
		}
	}
	return map[string]func() error{
		"admin":     get(c.AdminPort, "/name", ""),
		"readiness": get(c.StatusPort, "/healthz/ready", "ready"),
		"probe":     get(c.ReadyPort, "/healthz/ready", "ready"),
		"metrics":   get(c.StatusPort, "/stats/prometheus", "envoy_of_"),
		"DNS":       ask("udp"),
		"DNS, TCP":  ask("tcp"),
	}
}
