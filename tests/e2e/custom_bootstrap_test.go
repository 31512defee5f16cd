package e2e_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.mesh/tests/lab"
)

// TestCustomBootstrap gives Envoy the bootstrap that Istio's own agent makes, by customConfigFile. It is in force, its listener
// for the kubelet included; the agent serves Envoy's admin all the same; and a newcomer is refused with the reason.
func TestCustomBootstrap(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: []string{"--customConfigFile", lab.ConfigMount + "/bootstrap.json"}})
	data, err := os.ReadFile("../../pkg/agent/internal/sidecar/testdata/istio/injected.istio.json")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(p.slots.HostConfig, "bootstrap.json"), data, 0o644))
	p.start(t, 0, p.newer, 1, 0)
	p.waitReady(t)
	must(t, p.flows())
	_, dump, err := p.Pod.Get("http://127.0.0.1:15000/config_dump?resource=&mask=bootstrap.node.id,bootstrap.admin")
	must(t, errors.Join(err, contains(dump, "sidecar~10.1.2.3~web-5d4f8c7b9-abcde.shop~shop.svc.cluster.local", "admin.sock")))
	_, listeners, err := p.Pod.Get("http://127.0.0.1:15000/listeners")
	must(t, errors.Join(err, contains(listeners, "0.0.0.0:15021", "0.0.0.0:15090")))

	p.start(t, 1, p.newer, 2, 1)
	lab.Eventually(t, settleWithin, "the newcomer is refused", func() error {
		return contains(p.slot(1).Log.String(), "takes no part in hot restarts", "--customConfigFile")
	})
	must(t, errors.Join(p.inRole(0, roleServing), p.ready(), p.flows()))
}
