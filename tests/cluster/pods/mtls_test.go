package pods

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// caller is who asks.
const caller = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: caller}
`

// strict lets nobody at a namespace's pods who has no certificate of the mesh.
const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: called}
spec:
  selector: {app: called}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]
`

// Patches of the two pods: the label by which istiod knows who takes mutual TLS (its injector gives it), roots of other meshes, and a
// certificate that is replaced after a minute, a minute before it ends: no standstill of a busy machine takes that long.
const (
	asCalled      = "metadata: {labels: {app: called, security.istio.io/tlsMode: istio}}"
	furtherRoots  = `spec: {containers: [{name: istio-proxy, env: [{name: PROXY_CONFIG_XDS_AGENT, value: "true"}]}]}`
	asCaller      = "spec: {serviceAccountName: caller}"
	shortLifetime = `spec: {containers: [{name: istio-proxy, env: [{name: SECRET_TTL, value: 2m}]}]}`
)

// TestPodUnderIstiodMutualTLS has two pods speak mutual TLS as istiod configures it, with certificates that its authority signs,
// over TLS and for their tokens: no request fails, also while each certificate is replaced; who is called sees who calls; and who
// has no certificate is refused. The one that asks for the roots of other meshes trusts that which istiod has.
func TestPodUnderIstiodMutualTLS(t *testing.T) {
	ns := shared.Namespace(t, "mtls")
	ns.Apply(t, join(strict, caller, client,
		firstPod(t, ns, "called", serves, asCalled, underIstiod, shortLifetime, furtherRoots),
		firstPod(t, ns, app, serves, asCaller, underIstiod, shortLifetime)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/called", "pod/"+app, "pod/client")
	before := []cluster.Pod{ns.Pod(t, "called"), ns.Pod(t, app)}
	host := "called." + ns.Name + ".svc.cluster.local"

	awaitPeer(t, ns, host)
	if got, err := ns.TryExec("client", "client", "curl", "-sS", "--max-time", "10", "http://"+before[0].IP+":8080/"); err == nil {
		t.Errorf("a client without a certificate gets %q, want a connection that is refused", got)
	}

	traffic := ns.Load(t, cluster.FromPod(app, app),
		load.Flow{Name: "http", Kind: load.HTTP1New, Target: "http://" + host + "/", Want: "server=app", Rate: 50},
		// Each connection has a handshake of its own.
		load.Flow{Name: "tcp", Kind: load.TCPStream, Target: host + ":9000", Rate: 25, Life: load.Duration(1e9)})
	called, calls := serialOf(t, ns, "called", proxy), serialOf(t, ns, app, proxy)
	awaitAnother(t, ns, "called", called)
	awaitAnother(t, ns, app, calls)
	for pod, want := range map[string]int{"called": 2, app: 1} {
		metrics := ns.Exec(t, pod, proxy, "pilot-agent", "request", "--debug-port", "15020", "GET", "/metrics")
		if got := strings.Count(metrics, "\nistio_agent_trust_root_info{"); got != want {
			t.Errorf("%s trusts %d roots, want %d", pod, got, want)
		}
	}
	awaitRequests(t, traffic, enough)
	mustServe(t, "mutual TLS, while certificates are replaced", traffic)
	for i, pod := range []string{"called", app} {
		mustStay(t, before[i], ns.Pod(t, pod))
		if log := ns.Logs(t, pod, proxy); strings.Contains(log, "PRIVATE KEY") {
			t.Errorf("a key in the log of %s", pod)
		}
	}
}

// TestHotUpgradeMutualTLS upgrades a pod that is called by mutual TLS, while istiod is there and while it is away, which is its
// authority as well: no request fails, and each generation has the certificate of the one before, for which it asks nobody.
func TestHotUpgradeMutualTLS(t *testing.T) {
	ns := shared.Namespace(t, "mtls-upgrade")
	applyMesh(t, ns)
	ns.Apply(t, join(caller, firstPod(t, ns, app, serves, asCaller, underIstiod)))
	p := newTwoSlots(t, ns, "nginx", podOptions{istiod: true})
	ns.Kubectl(t, "label", "pod", p.name, "security.istio.io/tlsMode=istio")
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	host := "nginx." + ns.Name + ".svc.cluster.local"
	awaitPeer(t, ns, host)
	traffic := ns.Load(t, cluster.FromPod(app, app),
		load.Flow{Name: "new", Kind: load.HTTP1New, Target: "http://" + host + "/", Want: "server=nginx", Rate: 50},
		load.Flow{Name: "kept", Kind: load.HTTP1Keep, Target: "http://" + host + "/", Want: "server=nginx", Rate: 25})
	awaitRequests(t, traffic, enough)

	before := serialOf(t, ns, p.name, slots[p.serving])
	upgrade := func(image, envoy string) {
		t.Helper()
		p.upgrade(t, image)
		p.mustServeAlone(t, envoy)
		if now := serialOf(t, ns, p.name, slots[p.serving]); now != before {
			t.Errorf("after the upgrade the certificate is %s, before it %s", now, before)
		}
		metrics := ns.Exec(t, p.name, slots[p.serving], "pilot-agent", "request", "--debug-port", "15020", "GET", "/metrics")
		if !strings.Contains(metrics, `istio_agent_num_outgoing_requests{request_type="csr"} 0`+"\n") {
			t.Error("the new generation has asked for a certificate")
		}
		awaitRequests(t, traffic, enough)
	}
	upgrade(cluster.ProxyV2, olderEnvoy)
	if err := shared.Stop(t.Context(), cluster.Istiod, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	upgrade(cluster.ProxyV1, newerEnvoy)
	if err := shared.Start(t.Context(), cluster.Istiod); err != nil {
		t.Fatal(err)
	}
	awaitPeer(t, ns, host)
	mustServe(t, "mutual TLS, over hot upgrades", traffic)
	p.mustAlwaysBeReady(t)
}

// awaitPeer waits until a host that the caller asks sees who that is, by its certificate.
func awaitPeer(t *testing.T, ns *cluster.Namespace, host string) {
	t.Helper()
	lab.Eventually(t, podLimit, "who is called sees who calls", func() error {
		got, err := ns.TryExec(app, app, "curl", "-sS", "http://"+host+load.PeerPath)
		want := "URI=spiffe://cluster.local/ns/" + ns.Name + "/sa/caller"
		if err == nil && !strings.Contains(got, want) {
			err = fmt.Errorf("the header is %q, want %s in it", got, want)
		}
		return err
	})
}

// serial is where Envoy's page of certificates has the workload's own.
var serial = regexp.MustCompile(`(?s)"cert_chain": \[.*?"serial_number": "([0-9a-f]+)"`)

// serialOf is the serial number of the certificate that a pod's Envoy uses.
func serialOf(t *testing.T, ns *cluster.Namespace, pod, container string) string {
	t.Helper()
	page := ns.Exec(t, pod, container, "pilot-agent", "request", "GET", "/certs")
	found := serial.FindStringSubmatch(page)
	if found == nil {
		t.Fatalf("Envoy of %s has no certificate:\n%s", pod, page)
	}
	return found[1]
}

// awaitAnother waits until a pod's Envoy uses another certificate than the one with this serial number.
func awaitAnother(t *testing.T, ns *cluster.Namespace, pod, before string) {
	t.Helper()
	lab.Eventually(t, podLimit, pod+" has another certificate", func() error {
		if serialOf(t, ns, pod, proxy) == before {
			return fmt.Errorf("it is still %s", before)
		}
		return nil
	})
}
