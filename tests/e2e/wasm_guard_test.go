package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

// modulesURL is where serveModules serves.
const modulesURL = "http://198.51.100.70"

// marked is a module that adds a header of the guard's.
func marked(value string) proxywasm.Module {
	return proxywasm.Module{Header: "x-guard", Value: value}
}

// guarded counts what has become of requests to a port that a filter guards.
type guarded struct{ filtered, refused atomic.Int64 }

// ask makes one request. It is an error if the application has answered and the filter has not seen it.
func (g *guarded) ask(ctx context.Context, out *lab.Namespace) error {
	status, header, err := answer(ctx, out, "8080")
	switch {
	case err != nil, status == http.StatusForbidden, status == http.StatusServiceUnavailable:
		g.refused.Add(1)
		return nil
	case status == http.StatusOK && header.Get("x-guard") != "":
		g.filtered.Add(1)
		return nil
	}
	return fmt.Errorf("status %d with x-guard %q: it has passed the guard", status, header.Get("x-guard"))
}

// guards waits until the guard's module of a value is in force.
func guards(t *testing.T, p *slotPod, value string) {
	t.Helper()
	lab.Eventually(t, wasmLimit, "x-guard: "+value+" is in force", func() error {
		return headers(t.Context(), p.Out, "8080", map[string]string{"x-guard": value})
	})
}

// wasmPhase waits until a slot's agent says so of the module of a WasmPlugin.
func wasmPhase(t *testing.T, p *slotPod, slot int, name, phase string) {
	t.Helper()
	lab.Eventually(t, wasmLimit, name+" is "+phase, func() error {
		for line := range strings.Lines(p.slot(slot).Run(t, lab.AgentPath, "wasm", "list").Stdout) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasSuffix(fields[0], "."+name) {
				if fields[1] != phase {
					return errors.New(line)
				}
				return nil
			}
		}
		return fmt.Errorf("there is no %s", name)
	})
}

// takeOver has the second slot's agent take over from the first's, when it has so many modules, of each of which an Envoy may have to
// try the newest first.
func (p *slotPod) takeOver(t *testing.T, modules int) {
	t.Helper()
	p.start(t, 1, p.newer, 2, 1)
	lab.Eventually(t, time.Duration(modules)*wasmLimit, "it takes over", func() error { return p.inRole(1, roleServing) })
	p.waitRole(t, 0, roleDraining, roleStandby)
}

// TestWasmGuard: no request passes by a filter that fails closed: not before its module is there, not while that or its configuration is
// replaced, by a bad one too, while other filters come and go, in an upgrade, nor when Envoy is killed. It goes without a request that fails.
func TestWasmGuard(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{})
	s := serveModules(t, p.Lab, map[string][]byte{
		"/refuses": proxywasm.Module{Configure: proxywasm.Refuses}.Bytes(), "/other": proxywasm.Module{Header: "x-other", Value: "on"}.Bytes(),
	})
	guard := func(path, more string) {
		p.slots.Write(t, "guard.yaml", proxywasm.Plugin("guard", modulesURL+path, more))
	}
	guard("/one", "")
	counts := &guarded{}
	asked, stop := repeatedly(t, func(ctx context.Context) error { return counts.ask(ctx, p.Out) })
	defer stop()
	p.start(t, 0, p.newer, 1, 0)
	eventually(t, "Envoy refuses what is guarded", func() error {
		status, _, err := answer(t.Context(), p.Out, "8080")
		if err == nil && status != http.StatusForbidden {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	goesOn(t, asked, 100)
	s.Put("/one", marked("one"))
	guard("/one?again", "") // at once, not when it is tried for again
	p.waitRole(t, 0, roleServing)
	guards(t, p, "one")

	for _, value := range []string{"two", "three"} {
		s.Put("/"+value, marked(value))
		guard("/"+value, "")
		guards(t, p, value)
	}
	guard("/three", ", pluginConfig: {a: 1}, phase: AUTHN")
	wasmPhase(t, p, 0, "guard", "InForce")
	guard("/refuses", "")
	wasmPhase(t, p, 0, "guard", "Stale")
	p.slots.Write(t, "other.yaml", proxywasm.Plugin("other", modulesURL+"/other", ""))
	wasmPhase(t, p, 0, "other", "InForce")
	goesOn(t, asked, 100)
	p.slots.Remove(t, "other.yaml")
	eventually(t, "the other filter is gone", func() error {
		return headers(t.Context(), p.Out, "8080", map[string]string{"x-other": "", "x-guard": "three"})
	})

	guard("/three", "")
	wasmPhase(t, p, 0, "guard", "InForce")
	p.takeOver(t, 1)
	goesOn(t, asked, 100)
	must(t, syscall.Kill(p.slot(1).Agent().EnvoyPID(), syscall.SIGKILL))
	guards(t, p, "three")
	if wasmLong() {
		goesOn(t, asked, max(0, 10_000-asked.Load()))
	}
	stop()
	t.Logf("%d requests: %d filtered, %d refused", asked.Load(), counts.filtered.Load(), counts.refused.Load())

	after, stop := asking(t, p.Out, "8080", nil)
	defer stop()
	p.slots.Remove(t, "guard.yaml")
	eventually(t, "the guard is gone", func() error {
		return headers(t.Context(), p.Out, "8080", map[string]string{"x-guard": ""})
	})
	goesOn(t, after, 100)
}

// TestWasmFailOpen: no request fails for a filter that fails open, whatever becomes of its module.
func TestWasmFailOpen(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	s := serveModules(t, p.Lab, map[string][]byte{"/refuses": proxywasm.Module{Configure: proxywasm.Refuses}.Bytes(), "/corrupt": []byte("\x00asm")})
	p.slots.Write(t, meshFile, noDetectionTimeout)
	open := func(path string) {
		p.slots.Write(t, "open.yaml", proxywasm.Plugin("open", modulesURL+path, ", failStrategy: FAIL_OPEN"))
	}
	open("/one")
	p.start(t, 0, p.newer, 1, 0)
	p.waitRole(t, 0, roleServing)
	asked, stop := asking(t, p.Out, "8080", nil)
	defer stop()
	for _, path := range []string{"/refuses", "/corrupt"} {
		open(path)
		wasmPhase(t, p, 0, "open", "Failed")
	}
	for _, value := range []string{"one", "two"} {
		s.Put("/"+value, marked(value))
		open("/" + value + "?there")
		guards(t, p, value)
		open("/none")
		wasmPhase(t, p, 0, "open", "Stale")
	}
	open("/two?there") // what the one before has in force, a newcomer has to have
	wasmPhase(t, p, 0, "open", "InForce")
	p.takeOver(t, 1)
	p.slots.Remove(t, "open.yaml")
	eventually(t, "the filter is gone", func() error {
		return headers(t.Context(), p.Out, "8080", map[string]string{"x-guard": ""})
	})
	if wasmLong() {
		goesOn(t, asked, max(0, 10_000-asked.Load()))
	}
	stop()
	t.Logf("%d requests", asked.Load())
}

// TestWasmManyModules: as many filters as a pod may ever have, each with a module of its own, all see each request, also when all modules
// are replaced at once, and over an upgrade.
func TestWasmManyModules(t *testing.T) {
	t.Parallel()
	modules := 5
	if wasmLong() {
		modules = 40
	}
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	s := serveModules(t, p.Lab, map[string][]byte{})
	write := func(version string) {
		var all []string
		for i := range modules {
			path := fmt.Sprintf("/%d/%s", i, version)
			s.Put(path, proxywasm.Module{Header: fmt.Sprint("x-many-", i), Value: version})
			all = append(all, proxywasm.Plugin(fmt.Sprint("many-", i), modulesURL+path, ""))
		}
		p.slots.Write(t, "many.yaml", documents(all...))
	}
	want := func(version string) map[string]string {
		all := map[string]string{}
		for i := range modules {
			all[fmt.Sprint("x-many-", i)] = version
		}
		return all
	}
	p.slots.Write(t, meshFile, noDetectionTimeout)
	write("one")
	p.start(t, 0, p.newer, 1, 0)
	lab.Eventually(t, time.Duration(modules)*wasmLimit, "all modules are in force", func() error {
		return headers(t.Context(), p.Out, "8080", want("one"))
	})
	p.waitRole(t, 0, roleServing)
	asked, stop := asking(t, p.Out, "8080", want("*"))
	defer stop()
	write("two")
	goesOn(t, asked, 100)
	p.takeOver(t, modules)
	lab.Eventually(t, time.Duration(modules)*wasmLimit, "all modules are replaced", func() error {
		return headers(t.Context(), p.Out, "8080", want("two"))
	})
	goesOn(t, asked, 100)
	stop()
	t.Logf("%d requests through %d modules, all of them replaced, one upgrade", asked.Load(), modules)
}

// TestWasmSlowModule: while Envoy compiles a large module, which occupies its main thread, the pod serves and stays ready.
func TestWasmSlowModule(t *testing.T) {
	t.Parallel()
	functions := 3_000 // 4 MB
	if wasmLong() {
		functions = 25_000
	}
	// Envoy alone meets it: another that tried it at the lowest priority would take minutes.
	p := newPod(t, podOptions{agent: lab.AgentOptions{Args: withMeshFile, Env: []string{"UNDERSTUDY_WASM_CHECK=off"}}, files: map[string]string{meshFile: noDetectionTimeout}})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	slow := marked("slow")
	slow.Functions = functions
	serveModules(t, p.Lab, map[string][]byte{"/quick": marked("quick").Bytes(), "/slow": slow.Bytes()})
	p.c.Write(t, "guard.yaml", proxywasm.Plugin("guard", modulesURL+"/quick", ""))
	lab.Eventually(t, wasmLimit, "a module is in force", func() error { return header(t, p, "8080", "x-guard", "quick") })
	asked, stop := asking(t, p.Out, "8080", map[string]string{"x-guard": "*"})
	defer stop()
	probed, stopProbes := repeatedly(t, func(context.Context) error {
		return errors.Join(answers(p.Out, "http://"+lab.PodIP+":15021/healthz/ready"), answers(p.Pod, "http://127.0.0.1:15020/healthz/ready"))
	})
	defer stopProbes()
	began := time.Now()
	p.c.Write(t, "guard.yaml", proxywasm.Plugin("guard", modulesURL+"/slow", ""))
	lab.Eventually(t, wasmLimit, "the large module is in force", func() error { return header(t, p, "8080", "x-guard", "slow") })
	t.Logf("it took %v, in which %d requests and %d probes were answered", time.Since(began), asked.Load(), probed.Load())
}
