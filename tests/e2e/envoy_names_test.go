package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// endpointDNS is a ServiceEntry whose endpoint has to be looked up.
func endpointDNS(name, endpoint string, port int) string {
	return entry(name, name+".mesh.example", port, "TCP", "DNS") + fmt.Sprintf("  endpoints: [{address: %q}]\n", endpoint)
}

// clusters wants lines of Envoy's clusters as often as they are counted here.
func (p *pod) clusters(t *testing.T, within time.Duration, want map[string]int) {
	t.Helper()
	lab.Eventually(t, within, "Envoy has the addresses of its clusters", func() error {
		_, body, err := p.Pod.Get("http://127.0.0.1:15000/clusters")
		for line, n := range want {
			if got := strings.Count(string(body), line); err == nil && got != n {
				err = fmt.Errorf("%q is there %d times, want %d", line, got, n)
			}
		}
		return err
	})
}

// TestEnvoyLooksUpOnce counts what the name server is asked for twenty entries with one endpoint: A and AAAA once in
// the life of an answer, and no name that a search domain made of it. One that only a search domain leads to is found.
func TestEnvoyLooksUpOnce(t *testing.T) {
	t.Parallel()
	for _, capture := range []string{"true", "false"} {
		t.Run("capture "+capture, func(t *testing.T) {
			t.Parallel()
			const entries, ttl, refreshes = 20, 2, 3
			var docs []string
			for i := range entries {
				docs = append(docs, endpointDNS(fmt.Sprintf("shared-%d", i), "shared.example", 8100+i))
			}
			p := newPod(t, podOptions{
				agent: lab.AgentOptions{Env: []string{"ISTIO_META_DNS_CAPTURE=" + capture}},
				files: map[string]string{"shared.yaml": documents(docs...)},
			})
			p.dns.SetTTL(ttl)
			p.dns.Set("mysql.prod.svc.cluster.local", "198.51.100.61")
			p.dns.Set("shared.example", "198.51.100.60", "2001:db8::60") // until now there was none
			p.c.Write(t, "prod.yaml", endpointDNS("prod", "mysql.prod", 8099))
			want := map[string]int{"::198.51.100.61:8099::hostname::mysql.prod": 1}
			for i := range entries {
				want[fmt.Sprintf("::198.51.100.60:%d::hostname::", 8100+i)] = 1
				want[fmt.Sprintf("::[2001:db8::60]:%d::hostname::", 8100+i)] = 1
			}
			p.clusters(t, lab.Deadline, want)

			asked := func() (a, aaaa, searched int) {
				a, aaaa = p.dns.Queries("shared.example", "A"), p.dns.Queries("shared.example", "AAAA")
				return a, aaaa, p.dns.Asked("shared.example") - a - aaaa
			}
			began := time.Now()
			a0, aaaa0, searched0 := asked()
			eventually(t, "Envoy refreshes the name", func() error {
				if a, _, _ := asked(); a-a0 < refreshes {
					return fmt.Errorf("it was asked %d times for A", a-a0)
				}
				return nil
			})
			a1, aaaa1, searched1 := asked()
			a, aaaa, searched := a1-a0, aaaa1-aaaa0, searched1-searched0
			t.Logf("%d A, %d AAAA and %d of search domains in %v", a, aaaa, searched, time.Since(began))
			most := int(time.Since(began)/(ttl*time.Second)) + 2
			if a > most || aaaa > most || searched > 0 {
				t.Errorf("asked for A %d times, for AAAA %d times, for names of search domains %d times; %d, %d and 0 are allowed", a, aaaa, searched, most, most)
			}
		})
	}
}

// TestEnvoyLooksUpWithIPv6 asks in a pod without IPv4, where the agent's port is on ::1.
func TestEnvoyLooksUpWithIPv6(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	p := &pod{Lab: l, dns: l.StartDNS(t, outside)}
	p.dns.Set("mysql.prod.svc.cluster.local", "198.51.100.61", "2001:db8::61")
	p.c = l.NewContainer(t, lab.ContainerOptions{Envoy: lab.EnvoyBinary(t), ReadOnly: true})
	p.c.Write(t, "mesh.yaml", documents(endpointDNS("six", "six.example", 8100), endpointDNS("prod", "mysql.prod", 8101)))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Env: []string{"INSTANCE_IP=" + lab.PodIPv6, "INSTANCE_IPS=" + lab.PodIPv6}})
	lab.Eventually(t, lab.Deadline, "Envoy has the addresses of its clusters", func() error {
		_, body, err := p.Pod.Get("http://[::1]:15000/clusters")
		return errors.Join(err, contains(string(body), "::[2001:db8::30]:8100::hostname::six.example", "::[2001:db8::61]:8101::hostname::mysql.prod"))
	})
}

// TestEnvoyFollowsResolvConf changes the name server under a running Envoy.
func TestEnvoyFollowsResolvConf(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	p := &pod{Lab: l, dns: l.StartDNS(t, outside)}
	p.dns.SetTTL(1)
	p.dns.Set("moves.example", "198.51.100.62")
	const other = "198.51.100.54"
	serveName(t, l, other+":53", "198.51.100.63")
	p.c = l.NewContainer(t, lab.ContainerOptions{Envoy: lab.EnvoyBinary(t)})
	p.c.Write(t, "mesh.yaml", endpointDNS("moves", "moves.example", 8100))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	p.clusters(t, lab.Deadline, map[string]int{"::198.51.100.62:8100::hostname::": 1})
	p.c.Run(t, lab.As{UID: lab.RootUID}, "sh", "-c", "echo nameserver "+other+" >/etc/resolv.conf")
	p.clusters(t, lab.Deadline, map[string]int{"::198.51.100.63:8100::hostname::": 1, "::198.51.100.62:8100::hostname::": 0})
}

// serveName answers every question for A with one address.
func serveName(t *testing.T, l *lab.Lab, at, addr string) {
	t.Helper()
	server := &dns.Server{PacketConn: l.Out.ListenPacket(t, at), Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			rr, _ := dns.NewRR(q.Question[0].Name + " 1 IN A " + addr)
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.ShutdownContext(context.Background()) })
}

// TestEnvoyLooksUpManyAtOnce starts with more names than may wait at once: none of them is refused, or Envoy would have
// no address for it until it tries again.
func TestEnvoyLooksUpManyAtOnce(t *testing.T) {
	t.Parallel()
	const names = 1500
	var docs []string
	l := lab.New(t)
	p := &pod{Lab: l, dns: l.StartDNS(t, outside)}
	for i := range names {
		docs = append(docs, endpointDNS(fmt.Sprintf("n%d", i), fmt.Sprintf("n%d.example", i), 9100))
		p.dns.Set(fmt.Sprintf("n%d.example", i), "198.51.100.64")
	}
	p.c = l.NewContainer(t, lab.ContainerOptions{Envoy: lab.EnvoyBinary(t), ReadOnly: true})
	p.c.Write(t, "mesh.yaml", documents(docs...))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{})
	p.agent.WaitReady(t)
	p.clusters(t, lab.Deadline, map[string]int{"::198.51.100.64:9100::hostname::": names})
	if n := p.dns.Asked("n1.example"); n > 6 { // a try more is not more names
		t.Errorf("n1.example was asked for %d times", n)
	}
}

// TestDrainingEnvoyLooksUp has the old generation's Envoy ask for a name that only its configuration has yet: it is
// answered for as long as it drains.
func TestDrainingEnvoyLooksUp(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Env: []string{"UNDERSTUDY_DNS_TTL=1s"}}) // for which what went lingers
	p.dns.SetTTL(1)
	p.dns.Set("old.example", "198.51.100.65")
	p.slots.Write(t, "names.yaml", endpointDNS("old", "old.example", 8100))
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	held := dial(t, p.Out, lab.PodIP+":9000")
	send(t, held, "before")
	expect(t, held, "before")
	p.start(t, 1, p.newer, 2, 1)
	p.waitRole(t, 1, roleServing)
	p.waitRole(t, 0, roleDraining)
	p.slots.Write(t, "names.yaml", endpointDNS("new", "new.example", 8100))
	eventually(t, "the new Envoy has the new configuration", func() error {
		_, body, err := p.Pod.Get("http://127.0.0.1:15000/clusters")
		if err == nil && (strings.Contains(string(body), "old.mesh.example") || !strings.Contains(string(body), "new.mesh.example")) {
			err = fmt.Errorf("its clusters are\n%s", body)
		}
		return err
	})
	asked := p.dns.Queries("old.example", "A")
	eventually(t, "the draining Envoy looks its name up", func() error {
		if n := p.dns.Queries("old.example", "A") - asked; n < 3 {
			return fmt.Errorf("asked %d times since", n)
		}
		return nil
	})
	p.waitRole(t, 0, roleDraining)
	send(t, held, "draining")
	expect(t, held, "draining")
}
