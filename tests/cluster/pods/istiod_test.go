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

// plainText keeps mutual TLS out of a namespace, which has a test of its own.
const plainText = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: plain}
spec: {mtls: {mode: DISABLE}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: plain}
spec: {host: "*", trafficPolicy: {tls: {mode: DISABLE}}}
`

// underIstiod makes README's pod one of a mesh: what Istio's injector gives a proxy so that it finds istiod and is known
// there.
var underIstiod = `
spec:
  containers:
  - name: istio-proxy
    args: [proxy, sidecar]
    env:
    - {name: PROXY_CONFIG, value: "{discoveryAddress: '` + cluster.IstiodAddress + `'}"}
    - {name: ISTIOD_SAN, value: istiod.istio-system.svc}
    - {name: ISTIO_META_CLUSTER_ID, value: Kubernetes}
    - {name: SERVICE_ACCOUNT, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    volumeMounts:
    - {name: istiod-ca-cert, mountPath: /var/run/secrets/istio}
    - {name: istio-token, mountPath: /var/run/secrets/tokens}
    - {mountPath: /etc/understudy/mesh, $patch: delete}
  volumes:
  - {name: istiod-ca-cert, configMap: {name: istio-ca-root-cert}}
  - {name: istio-token, projected: {sources: [{serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 43200}}]}}
  - {name: mesh, $patch: delete}
`

// TestPodUnderIstiod has a pod get its configuration from a real istiod, over TLS and with its token: names and VIPs are
// istiod's, a change arrives, and while istiod is away nothing is lost, an Envoy that dies is replaced, and what is deleted
// then goes when istiod is back.
func TestPodUnderIstiod(t *testing.T) {
	ns := shared.Namespace(t, "istiod")
	ns.Apply(t, join(plainText, hosts, firstPod(t, ns, app, serves, underIstiod)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before := ns.Pod(t, app)
	out := ns.Load(t, cluster.FromPod(app, app), outbound()...)
	in := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + before.IP + ":8080/", Want: "server=app", Rate: 25})
	awaitRequests(t, out, enough)

	ns.Kubectl(t, "patch", "serviceentry", "shop", "--type=merge", "--patch", `{"spec":{"hosts":["shop.world.test","other.world.test"]}}`)
	awaitName(t, ns, "other.world.test", true)
	mustShowChange(t, ns, "added", "other.world.test")
	if found, err := ns.TryExec(app, proxy, "pilot-agent", "doctor", "istiod"); err != nil {
		t.Errorf("doctor istiod finds in a pod that istiod serves: %v\n%s", err, found)
	}

	if err := shared.Stop(t.Context(), cluster.Istiod, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ns.Kubectl(t, "patch", "serviceentry", "shop", "--type=merge", "--patch", `{"spec":{"hosts":["shop.world.test"]}}`)
	awaitRequests(t, out, enough)
	awaitRequests(t, in, enough)
	for name, want := range map[string]string{"upstream_rq_total": "1", "upstream_rq_active": "1"} {
		if got := stat(t, ns, "cluster.xds-grpc.."+name); got != want {
			t.Errorf("while istiod is away, %s of Envoy's streams to the agent is %q, want %q", name, got, want)
		}
	}
	mustServe(t, "outbound, with istiod and without", out)
	mustServe(t, "inbound, with istiod and without", in)

	ns.Exec(t, app, proxy, "sh", "-c", killEnvoy)
	lab.Eventually(t, podLimit, "another Envoy serves without istiod", func() error {
		got, err := ns.TryExec(app, app, "curl", "-sS", "http://shop.world.test/")
		if err != nil || got != "server=world\n" {
			return fmt.Errorf("%q, %w", got, err)
		}
		return nil
	})
	awaitName(t, ns, "other.world.test", true) // nobody has told of its end

	if err := shared.Start(t.Context(), cluster.Istiod); err != nil {
		t.Fatal(err)
	}
	awaitName(t, ns, "other.world.test", false)
	mustStay(t, before, ns.Pod(t, app))
}

// mustShowChange says that config log has a change of a resource whose name contains host.
func mustShowChange(t *testing.T, ns *cluster.Namespace, change, host string) {
	t.Helper()
	row := regexp.MustCompile(`(?m)^\S+Z\s+` + change + `\s`)
	if log := ns.Exec(t, app, proxy, "pilot-agent", "config", "log", host); !row.MatchString(log) {
		t.Errorf("nothing of %s was %s:\n%s", host, change, log)
	}
}

// awaitName waits until the agent has a VIP for a host, or (false) does not know it.
func awaitName(t *testing.T, ns *cluster.Namespace, host string, known bool) {
	t.Helper()
	row := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(host) + `\s.*\b240\.240\.`)
	lab.Eventually(t, podLimit, fmt.Sprintf("%s is known: %v", host, known), func() error {
		table, err := ns.TryExec(app, proxy, "pilot-agent", "dns", "table")
		if err == nil && row.MatchString(table) != known {
			err = fmt.Errorf("the table:\n%s", table)
		}
		return err
	})
}

// stat is a statistic of the pod's Envoy, by a regular expression: the name of a cluster ends with a semicolon, as Istio has it.
func stat(t *testing.T, ns *cluster.Namespace, name string) string {
	t.Helper()
	text := ns.Exec(t, app, proxy, "pilot-agent", "request", "GET", "/stats?filter=^"+name+"$")
	_, value, _ := strings.Cut(strings.TrimSpace(text), ": ")
	return value
}
