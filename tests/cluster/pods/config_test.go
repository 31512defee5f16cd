package pods

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// lateHost is a host that comes into the mesh while the pod serves.
const lateHost = `
  late.yaml: |
    apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {name: late}
    spec:
      hosts: [late.world.test]
      ports: [{number: 80, name: http, protocol: HTTP}]
      resolution: DNS
`

// TestConfigMapChange has a host come into the ConfigMap and go again: the pod follows without a restart, and no other
// request fails.
func TestConfigMapChange(t *testing.T) {
	ns := shared.Namespace(t, "config")
	ns.Apply(t, join(mesh, firstPod(t, ns, app, serves)))
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+app)
	before, watch := ns.Pod(t, app), ns.Watch(t)
	out := ns.Load(t, cluster.FromPod(app, app), outbound()...)
	inbound := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + before.IP + ":8080/", Want: "server=app", Rate: 100})
	awaitRequests(t, out, enough)

	change := func(manifest, annotation string) {
		t.Helper()
		ns.Apply(t, manifest)
		// The kubelet looks at a pod's volumes once a minute, and when the pod changes.
		ns.Kubectl(t, "annotate", "pod", app, annotation)
	}
	change(strings.TrimRight(mesh, "\n")+lateHost, "late.world.test=here")
	vip := regexp.MustCompile(`^server=world\n240\.240\.\d+\.\d+$`)
	lab.Eventually(t, podLimit, "the new host is asked by its VIP", func() error {
		if answer, err := ns.TryExec(app, app, "curl", "-sS", "--write-out", "%{remote_ip}", "http://late.world.test/"); !vip.MatchString(answer) {
			return fmt.Errorf("%q, %v", answer, err)
		}
		return nil
	})
	change(mesh, "late.world.test-")
	lab.Eventually(t, podLimit, "the host is gone from DNS", func() error {
		if table := ns.Exec(t, app, proxy, "pilot-agent", "dns", "table"); strings.Contains(table, "late.world.test") {
			return fmt.Errorf("%s", table)
		}
		return nil
	})

	awaitRequests(t, out, enough)
	mustServe(t, "outbound", out)
	mustServe(t, "inbound", inbound)
	mustStay(t, before, ns.Pod(t, app))
	if unready := watch.Unready(app); len(unready) > 0 {
		t.Errorf("the pod was not ready: %v", unready)
	}
}
