package istiod_test

import (
	"errors"
	"flag"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

var hold = flag.Duration("hold", 20*time.Minute, "how long TestLongCertificates has certificates replaced; half as long the authority is away")

const (
	// lifetime is a certificate's.
	lifetime = time.Minute
	// callsWithin is how often at most an authority that is away may be called in callsSpan.
	callsWithin, callsSpan = 25, 10 * time.Minute
	csrs                   = `num_outgoing_requests{request_type="csr"}`
	// self is a host of the mesh that leads to the pod itself: its Envoy speaks mutual TLS with itself.
	self = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: self, namespace: default}
spec:
  hosts: [self.mesh.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints: [{address: ` + lab.PodIP + `, labels: {security.istio.io/tlsMode: istio}, serviceAccount: default}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: default}
spec: {mtls: {mode: STRICT}}
`
)

// TestLongCertificates: certificates that live for a minute are replaced under a load of mutual TLS without a request that fails,
// and none is asked for twice; an authority that is away is not called all the time.
func TestLongCertificates(t *testing.T) {
	if !*long {
		t.Skip("minutes: -long")
	}
	p := inMesh(t, 1, map[string]string{"self": self}, "SECRET_TTL="+lifetime.String())
	start(t, p, 0, p.Ours)
	connect := netip.AddrPortFrom(vip(t, p, "self.mesh.test"), 80).String()
	flow := func(kind load.Kind, rate float64) load.Flow {
		return load.Flow{Kind: kind, Target: "http://self.mesh.test/", Connect: connect, Want: "server=app", Rate: rate, Life: kept}
	}
	traffic := lab.StartTraffic(t, lab.TrafficSide{From: p.Pod, Flows: []load.Flow{flow(load.HTTP1Keep, 200), flow(load.HTTP1New, 20)}})
	begun, first := time.Now(), metric(t, p, csrs)
	<-time.After(*hold) // the definition of what is counted
	lifetimes := time.Since(begun).Seconds() / lifetime.Seconds()
	asked := metric(t, p, csrs) - first
	t.Logf("%v certificates in %.1f lifetimes", asked, lifetimes)
	if asked < lifetimes || asked > lifetimes*2.1+1 {
		t.Errorf("%v certificates were asked for in %.1f lifetimes", asked, lifetimes)
	}
	mustLoseNothing(t, traffic)
	if status, _, err := p.Out.Get("http://" + lab.PodIP + ":8080/"); err == nil {
		t.Errorf("a client without a certificate gets a status %d", status)
	}

	p.Istiod.Kill()
	away, first := *hold/2, metric(t, p, csrs)
	<-time.After(away)
	calls := metric(t, p, csrs) - first
	t.Logf("%v calls of an authority that was away for %v", calls, away)
	if most := max(callsWithin*away.Seconds()/callsSpan.Seconds(), 10); calls == 0 || calls > most {
		t.Errorf("%v calls of an authority that was away for %v, want %.0f at most", calls, away, most)
	}
	p.Istiod.Start()
	lab.Eventually(t, 5*time.Minute, "the pod serves itself again", func() error {
		req, err := http.NewRequest(http.MethodGet, "http://"+connect+"/", http.NoBody)
		if err != nil {
			return err
		}
		req.Host = "self.mesh.test"
		resp, err := p.Pod.Client().Do(req)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return err
	})
}
