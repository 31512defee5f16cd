package pods

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sigs.k8s.io/yaml"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// istiodVolumes are the volumes of a pod under istiod, and the mounts of its proxy.
func istiodVolumes(t *testing.T) object {
	t.Helper()
	var all object
	if err := yaml.Unmarshal([]byte(`
volumes:
- {name: istiod-ca-cert, configMap: {name: istio-ca-root-cert}}
- {name: istio-token, projected: {sources: [{serviceAccountToken: {path: istio-token, audience: istio-ca, expirationSeconds: 43200}}]}}
`), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// followIstiod makes a slot of manifests/ one that has its configuration from istiod.
func followIstiod(c object) {
	arguments := c["args"].([]any)
	at := slices.Index(arguments, "--configDir")
	c["args"] = slices.Delete(arguments, at, at+2)
	named := func(name string) func(any) bool {
		return func(o any) bool { return o.(object)["name"] == name }
	}
	environment := slices.DeleteFunc(c["env"].([]any), named("PROXY_CONFIG"))
	c["env"] = append(environment,
		object{"name": "PROXY_CONFIG", "value": "{configPath: /etc/istio/proxy, discoveryAddress: '" + cluster.IstiodAddress + "'}"},
		object{"name": "ISTIOD_SAN", "value": "istiod.istio-system.svc"},
	)
	mounts := slices.DeleteFunc(c["volumeMounts"].([]any), named("mesh"))
	c["volumeMounts"] = append(mounts,
		object{"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
		object{"name": "istio-token", "mountPath": "/var/run/secrets/tokens"},
	)
}

// TestHotUpgradeUnderIstiod upgrades a pod of a real istiod's mesh under load of every kind, both ways: while istiod is there,
// while it is away, and while it comes back. Whoever says the same as before, istiod or the generation before, is not passed on.
func TestHotUpgradeUnderIstiod(t *testing.T) {
	ns := shared.Namespace(t, "istiod-upgrade")
	applyMesh(t, ns)
	ns.Apply(t, join(plainText, hosts, manifest(t, "configmap.yaml")[1]["data"].(object)["aliyun.yaml"].(string)))
	p := newTwoSlots(t, ns, "nginx", podOptions{istiod: true})
	p.mustServeAlone(t, newerEnvoy)
	load := p.startTraffic(t, toServices(t, ns)...)

	told := p.told(t)
	p.upgrade(t, cluster.ProxyV2)
	p.mustServeAlone(t, olderEnvoy)
	told = p.mustBeTold(t, 1, told) // what the generation before had

	if err := shared.Stop(t.Context(), cluster.Istiod, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.upgrade(t, cluster.ProxyV1)
	p.mustServeAlone(t, newerEnvoy)
	told = p.mustBeTold(t, 1, told)

	p.begin(t, cluster.ProxyV2)
	if err := shared.Start(t.Context(), cluster.Istiod); err != nil {
		t.Fatal(err)
	}
	p.finish(t, cluster.ProxyV2)
	p.mustServeAlone(t, olderEnvoy)
	p.awaitStream(t, 0)
	told = p.mustBeTold(t, 1, told)

	suppressed := p.suppressed(t)
	if err := shared.Restart(t.Context(), cluster.Istiod); err != nil {
		t.Fatal(err)
	}
	p.awaitStream(t, suppressed)
	p.mustBeTold(t, 0, told)

	load.mustNotFail(t)
	p.mustAlwaysBeReady(t)
	for _, text := range p.warnings(t) {
		t.Errorf("an event warns: %s", text)
	}
}

// TestAgentIsKilledWithoutIstiod kills the agent with istiod, and so its certificate authority, away: the container that the kubelet
// starts again has what the one before had.
func TestAgentIsKilledWithoutIstiod(t *testing.T) {
	ns := shared.Namespace(t, "istiod-restart")
	applyMesh(t, ns)
	ns.Apply(t, join(plainText, hosts))
	p := newTwoSlots(t, ns, "nginx", podOptions{istiod: true})
	slot := slots[p.serving]
	lab.Eventually(t, podLimit, "the configuration is kept", func() error {
		_, err := p.ns.TryExec(p.name, slot, "grep", "-q", shop, "/var/lib/istio/data/istiod.resources")
		return err
	})
	if err := shared.Stop(t.Context(), cluster.Istiod, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	restarts := p.containers(t)[slot].Restarts
	if err := syscall.Kill(p.ns.Process(t, p.name, slot), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.awaitSlot(t, p.serving, "was started again and is ready", func(c cluster.Container) bool { return c.Ready && c.Restarts > restarts })
	lab.Eventually(t, podLimit, "the application reaches a host of the mesh", func() error {
		got, err := p.ns.TryExec(p.name, application, "curl", "-sS", "http://"+shop+"/")
		if err == nil && got != "server=world\n" {
			err = fmt.Errorf("it gets %q", got)
		}
		return err
	})
	if err := shared.Start(t.Context(), cluster.Istiod); err != nil {
		t.Fatal(err)
	}
	p.awaitStream(t, 0)
}

// told is how often Envoy was told of its clusters and of its listeners. A generation goes on with the counts of the one before.
func (p *twoSlots) told(t *testing.T) (counts [2]int) {
	t.Helper()
	for i, name := range []string{"cluster_manager.cds.update_success", "listener_manager.lds.update_success"} {
		text := p.ns.Exec(t, p.name, slots[p.serving], "pilot-agent", "request", "GET", "/stats?filter=^"+name+"$")
		if _, err := fmt.Sscanf(text, name+": %d", &counts[i]); err != nil {
			t.Fatalf("Envoy says %q: %v", text, err)
		}
	}
	return counts
}

// mustBeTold demands that Envoy was told each of the two so often since before.
func (p *twoSlots) mustBeTold(t *testing.T, times int, before [2]int) [2]int {
	t.Helper()
	now := p.told(t)
	for i, what := range []string{"clusters", "listeners"} {
		if got := now[i] - before[i]; got != times {
			t.Errorf("Envoy was told of %s %d times, want %d", what, got, times)
		}
	}
	return now
}

// suppressed is how many resources of istiod's were not passed on, as Envoy had them.
func (p *twoSlots) suppressed(t *testing.T) (count float64) {
	t.Helper()
	const name = "\nistio_agent_xds_suppressed_total "
	text := p.ns.Exec(t, p.name, slots[p.serving], "pilot-agent", "request", "--debug-port", "15020", "GET", "/metrics")
	if _, value, found := strings.Cut(text, name); found {
		if _, err := fmt.Sscan(value, &count); err != nil {
			t.Fatalf("suppressed resources: %v", err)
		}
	}
	return count
}

// awaitStream waits until istiod has said everything once more, of which Envoy had more than before.
func (p *twoSlots) awaitStream(t *testing.T, before float64) {
	t.Helper()
	last := before
	lab.Eventually(t, podLimit, "istiod has said everything again", func() error {
		now := p.suppressed(t)
		if now <= before || now != last {
			last = now
			return fmt.Errorf("%v resources were not passed on, %v before", now, before)
		}
		return nil
	})
}
