package istiod_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

// modulesAddress is where the modules are, outside of the pod.
const modulesAddress = "198.51.100.80:8090"

// plugin is a WasmPlugin for the pod's inbound traffic, in the form that an istiod gives it: one which reads files has only that.
func plugin(path string) string {
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: headers, namespace: default}
spec:
  phase: AUTHN
  match: [{mode: SERVER}]
  wasm: {url: "http://%s%s", pluginConfig: {some: thing}}
`, modulesAddress, path)
}

// serveModules serves modules outside of the pod, at modulesAddress.
func serveModules(t *testing.T, p *istiod.Pod) *proxywasm.Server {
	t.Helper()
	modules := &proxywasm.Server{}
	t.Cleanup(modules.Start(p.Out.Listen(t, modulesAddress)))
	return modules
}

// ask asks the pod's application from outside, and returns the header that the modules of these tests add.
func ask(t *testing.T, p *istiod.Pod) (header string, status int, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+lab.PodIP+":8080/", nil)
	if err != nil {
		return "", 0, err
	}
	resp, err := p.Out.Client().Do(req)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	return resp.Header.Get("x-wasm"), resp.StatusCode, nil
}

// TestASMFilterDeployment: istiod and Envoy take the EnvoyFilter that one becomes, and its module is in force.
func TestASMFilterDeployment(t *testing.T) {
	p := inMesh(t, 1, nil, `ISTIO_METAJSON_LABELS={"app": "details"}`)
	serveModules(t, p).Put("/module", proxywasm.Module{Header: "x-wasm", Value: "asm"})
	spec := map[string]any{
		"workload": map[string]any{"kind": "Deployment", "labels": map[string]any{"app": "details"}},
		"filter":   map[string]any{"image": "registry.example.com/headers:v1", "parameters": `{"name":"hello"}`},
	}
	d, wrong := asmfilter.Read("default", "details", "", spec)
	if wrong != nil {
		t.Fatal(wrong)
	}
	manifest, err := json.Marshal(d.Manifest())
	if err != nil {
		t.Fatal(err)
	}
	start(t, p, 0, p.Ours)
	p.Istiod.Write("filter", strings.Replace(string(manifest), "oci://registry.example.com/headers:v1", "http://"+modulesAddress+"/module", 1))
	lab.Eventually(t, lab.SettleWithin, "responses have the module's header", func() error {
		header, status, err := ask(t, p)
		if err == nil && (header != "asm" || status != http.StatusOK) {
			err = fmt.Errorf("status %d, x-wasm: %q", status, header)
		}
		return err
	})
}

// TestWasmPlugin: a WasmPlugin of istiod's is in force on every request from the first one, late, replaced, missing and bad modules
// included; a module that comes needs no word of istiod's, and Envoy is told nothing that is for the agent.
func TestWasmPlugin(t *testing.T) {
	p := inMesh(t, 1, map[string]string{"plugin": plugin("/one")})
	modules := serveModules(t, p)
	ask := func() (header string, status int, err error) { return ask(t, p) }
	// in waits until requests have a header, of which each until then has the one before, or is refused while there is none.
	in := func(want, before string) {
		t.Helper()
		lab.Eventually(t, lab.SettleWithin, "responses have x-wasm: "+want, func() error {
			header, status, err := ask()
			switch {
			case err != nil:
				return err
			case header == want && status == http.StatusOK:
				return nil
			case before == "" && status != http.StatusForbidden || before != "" && (header != before || status != http.StatusOK):
				t.Fatalf("a response with status %d and x-wasm: %q, while it should have %q", status, header, before)
			}
			return fmt.Errorf("status %d, x-wasm: %q", status, header)
		})
	}
	reports := func() (all []struct{ Phase, Reason string }, err error) {
		status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/debug/wasm")
		if err != nil || status != http.StatusOK {
			return nil, fmt.Errorf("%d, %w", status, err)
		}
		return all, json.Unmarshal([]byte(body), &all)
	}
	phase := func(want, reason string) {
		t.Helper()
		lab.Eventually(t, lab.SettleWithin, "the module is "+want, func() error {
			all, err := reports()
			if err == nil && (len(all) != 1 || all[0].Phase != want || !strings.Contains(all[0].Reason, reason)) {
				err = fmt.Errorf("%+v", all)
			}
			return err
		})
	}

	// The module is not there yet: nothing passes, and the pod is not ready.
	if err := p.Slots.List[0].Start(p.Ours); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, startLimit, "requests are refused", func() error {
		_, status, err := ask()
		if err == nil && status != http.StatusForbidden {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	phase("Failed", "404")
	if status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/healthz/ready"); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("ready without the module: %d %s, %v", status, body, err)
	}
	pushes := metric(t, p, "istiod_connections_total")
	modules.Put("/one", proxywasm.Module{Header: "x-wasm", Value: "one"})
	in("one", "")
	p.Slots.List[0].Agent().WaitReadyWithin(t, startLimit)
	phase("InForce", "")

	// Another one; then one that is not there, which leaves it; then one that Envoy does not take.
	modules.Put("/two", proxywasm.Module{Header: "x-wasm", Value: "two"})
	p.Istiod.Write("plugin", plugin("/two"))
	in("two", "one")
	p.Istiod.Write("plugin", plugin("/three"))
	phase("Stale", "404")
	in("two", "two")
	modules.Put("/bad", proxywasm.Module{Configure: proxywasm.Refuses})
	p.Istiod.Write("plugin", plugin("/bad"))
	phase("Stale", "Envoy")
	in("two", "two")
	if status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/healthz/ready"); err != nil || status != http.StatusOK {
		t.Errorf("a module made a pod that serves unready: %d %s, %v", status, body, err)
	}

	// Without istiod the module that was missed comes as well.
	p.Istiod.Write("plugin", plugin("/four"))
	phase("Stale", "404")
	p.Istiod.Kill()
	modules.Put("/four", proxywasm.Module{Header: "x-wasm", Value: "four"})
	in("four", "two")
	p.Istiod.Start()
	lab.Eventually(t, lab.SettleWithin, "the agent has found istiod", func() error { return connected(t, p, 1) })
	in("four", "four")
	if now := metric(t, p, "istiod_connections_total"); now != pushes+1 {
		t.Errorf("%v streams to istiod, want %v", now, pushes+1)
	}
	status, dump, err := p.Pod.Get("http://127.0.0.1:" + lab.AdminPort + "/config_dump?resource=ecds_filters")
	if err != nil || status != http.StatusOK || !strings.Contains(dump, "/understudy/wasm/") || strings.Contains(dump, "ISTIO_META") || !strings.Contains(dump, `{\"some\":\"thing\"}`) {
		t.Errorf("Envoy has %d, %v: %s", status, err, dump)
	}

	p.Istiod.Write("plugin", "")
	lab.Eventually(t, lab.SettleWithin, "the plugin is gone", func() error {
		header, status, err := ask()
		if err == nil && (header != "" || status != http.StatusOK) {
			err = fmt.Errorf("status %d, x-wasm: %q", status, header)
		}
		return err
	})
}

// TestWasmUpgrade: hot upgrades with a module leave no response without its header: with istiod and the server of the
// modules, without that server, and without either, where the volume of the modules is empty.
func TestWasmUpgrade(t *testing.T) {
	u := upgrades{t: t, p: inMesh(t, 2, map[string]string{"plugin": plugin("/one")}, "UNDERSTUDY_UPGRADE_DRAIN_DURATION="+drain)}
	modules := serveModules(t, u.p)
	modules.Put("/one", proxywasm.Module{Header: "x-wasm", Value: "one"})
	u.begin()
	u.slot(1).Agent().WaitReadyWithin(t, startLimit)
	u.finish()
	ctx, cancel := context.WithCancel(t.Context())
	var client sync.WaitGroup
	asked := 0
	client.Go(func() {
		for ; ctx.Err() == nil; asked++ {
			if header, status, err := ask(t, u.p); err != nil || status != http.StatusOK || header != "one" {
				t.Errorf("a response with status %d and x-wasm: %q, %v", status, header, err)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	defer func() {
		cancel()
		client.Wait()
		t.Logf("%d requests", asked)
	}()
	u.next()
	modules.Clear()
	u.emptyStore()
	u.next()
	u.p.Istiod.Kill()
	u.emptyStore()
	u.next()
	lab.Eventually(t, lab.SettleWithin, "the module is known without istiod", func() error {
		status, body, err := u.p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + "/debug/wasm")
		// Its file was gone before it could be handed over, and its server has it no more: what runs goes on.
		if err == nil && (status != http.StatusOK || !strings.Contains(body, `"phase":"Stale"`) || !strings.Contains(body, `"sha256":"`)) {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
	u.p.Istiod.Start()
	lab.Eventually(t, lab.SettleWithin, "the newcomer has found istiod", func() error { return connected(t, u.p, 1) })
}

// emptyStore takes away what the pod's volume has of modules: the next generation finds a new one.
func (u *upgrades) emptyStore() {
	u.t.Helper()
	if err := os.RemoveAll(filepath.Join(u.p.Slots.VolumePath(lab.DataVolume, 0), "understudy/wasm")); err != nil {
		u.t.Fatal(err)
	}
}
