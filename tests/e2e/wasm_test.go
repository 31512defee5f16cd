package e2e_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/proxywasm"
)

// wasmUpdatesEnv has TestWasmUpdatesUnderLoad make so many updates, of two seconds each, instead of a few, and the other tests of modules take
// their long forms: TestWasmBadModules with a module that loops, which takes ten seconds of a processor at the lowest priority.
const wasmUpdatesEnv = "WASM_UPDATES"

// wasmLimit is how long a module may take that an Envoy tries first, on a machine that leaves it next to nothing: a try that had no
// processor for 30 s is made again.
const wasmLimit = 4 * time.Minute

// wasmLong says whether tests are to take their long forms.
func wasmLong() bool { return os.Getenv(wasmUpdatesEnv) != "" }

// serveModules serves modules at the outside, by path.
func serveModules(t *testing.T, l *lab.Lab, modules map[string][]byte) *proxywasm.Server {
	t.Helper()
	s := &proxywasm.Server{}
	for path, module := range modules {
		s.PutBytes(path, module)
	}
	t.Cleanup(s.Start(l.Out.Listen(t, "198.51.100.70:80")))
	return s
}

// wasmList demands words of what `wasm list -v` says of a plugin.
func wasmList(t *testing.T, p *pod, name string, words ...string) error {
	t.Helper()
	out := p.c.Run(t, lab.As{UID: lab.AgentUID}, lab.AgentPath, "wasm", "list", "-v").Stdout
	for part := range strings.SplitSeq(out, "\nextensions.istio.io/") {
		if strings.Contains(part, "document: WasmPlugin default/"+name+"\n") {
			return contains(part, words...)
		}
	}
	return fmt.Errorf("no %s in\n%s", name, out)
}

// repeatedly checks some 500 times a second, with six clients, until it is stopped; the first error of each client fails the test.
func repeatedly(t *testing.T, check func(context.Context) error) (checked *atomic.Int64, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	checked = &atomic.Int64{}
	const each = 12 * time.Millisecond
	for range 6 {
		clients.Go(func() {
			pace := time.NewTicker(each)
			defer pace.Stop()
			for ctx.Err() == nil {
				if err := check(context.WithoutCancel(ctx)); err != nil {
					t.Error(err)
					return
				}
				checked.Add(1)
				<-pace.C
			}
		})
	}
	return checked, func() { cancel(); clients.Wait() }
}

// asking asks a port from outside until it is stopped, and demands values of headers; "*" is any but none.
func asking(t *testing.T, out *lab.Namespace, port string, want map[string]string) (asked *atomic.Int64, stop func()) {
	t.Helper()
	return repeatedly(t, func(ctx context.Context) error { return headers(ctx, out, port, want) })
}

// goesOn waits until so many checks more were made.
func goesOn(t *testing.T, checked *atomic.Int64, more int64) {
	t.Helper()
	before := checked.Load()
	lab.Eventually(t, wasmLimit, "the load goes on", func() error {
		if made := checked.Load() - before; made < more {
			return fmt.Errorf("%d requests of %d", made, more)
		}
		return nil
	})
}

// TestWasmBadModules: of modules that are bad each in its own way, each is named with its reason, the Envoy that serves sees none of
// them, no request fails, and what is repaired is in force.
func TestWasmBadModules(t *testing.T) {
	t.Parallel()
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 8<<20))
	must(t, z.Close())
	good := proxywasm.Module{Header: "resp-header-demo", Value: "good"}.Bytes()
	p := newPod(t, podOptions{agent: lab.AgentOptions{Args: withMeshFile, Env: []string{"ISTIO_WASM_MAX_BINARY_SIZE_BYTES=2000000"}}, files: map[string]string{meshFile: noDetectionTimeout}})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	serveModules(t, p.Lab, map[string][]byte{
		"/good": good, "/corrupt": good[:len(good)-10], "/html": []byte("<html>"), "/large": proxywasm.Module{Pad: 3 << 20}.Bytes(), "/bomb": bomb.Bytes(),
		"/refuses": proxywasm.Module{Configure: proxywasm.Refuses}.Bytes(), "/traps": proxywasm.Module{Configure: proxywasm.Traps}.Bytes(),
		"/loops": proxywasm.Module{Configure: proxywasm.Loops}.Bytes(),
	})
	_, stop := asking(t, p.Out, "8080", nil)
	defer stop()
	const at = "http://198.51.100.70"
	type badModule struct{ doc, reason string }
	bad := map[string]badModule{
		"private": {proxywasm.Plugin("private", at+proxywasm.Private, ", failStrategy: FAIL_OPEN"), "401"},
		"none":    {proxywasm.Plugin("none", at+"/none", ", failStrategy: FAIL_OPEN"), "404"},
		"corrupt": {proxywasm.Plugin("corrupt", at+"/corrupt", ", failStrategy: FAIL_OPEN"), "cut off"},
		"html":    {proxywasm.Plugin("html", at+"/html", ", failStrategy: FAIL_OPEN"), `it begins with "<html>"`},
		"large":   {proxywasm.Plugin("large", at+"/large", ", failStrategy: FAIL_OPEN"), "more than 2000000 bytes"},
		"bomb":    {proxywasm.Plugin("bomb", at+"/bomb", ", failStrategy: FAIL_OPEN"), "more than 200 times"},
		"digest":  {proxywasm.Plugin("digest", at+"/good", ", failStrategy: FAIL_OPEN, sha256: "+strings.Repeat("ab", 32)), "is wanted"},
		"refuses": {proxywasm.Plugin("refuses", at+"/refuses", ", failStrategy: FAIL_OPEN"), "Envoy does not start it"},
		"traps":   {proxywasm.Plugin("traps", at+"/traps", ", failStrategy: FAIL_OPEN"), "Envoy does not start it"},
		"nobody":  {proxywasm.Plugin("nobody", "http://198.51.100.71/a", ", failStrategy: FAIL_OPEN"), "198.51.100.71"},
	}
	if wasmLong() { // it takes its time
		bad["loops"] = badModule{proxywasm.Plugin("loops", at+"/loops", ", failStrategy: FAIL_OPEN"), "endless loop"}
	}
	for name, b := range bad {
		p.c.Write(t, name+".yaml", b.doc)
	}
	for name, b := range bad {
		lab.Eventually(t, wasmLimit, name+" is named", func() error { return wasmList(t, p, name, "phase:    Failed", b.reason, "traffic:  passes unfiltered") })
	}
	if _, stats, err := p.Pod.Get("http://127.0.0.1:15000/stats?filter=config_reload|config_fail|update_rejected"); err != nil || strings.Contains(stats, "config_fail: 1") || strings.Contains(stats, "rejected: 1") {
		t.Errorf("the Envoy that serves has seen one: %v, %s", err, stats)
	}
	p.c.Write(t, "none.yaml", proxywasm.Plugin("none", at+"/good", ", failStrategy: FAIL_OPEN"))
	lab.Eventually(t, wasmLimit, "what is repaired is in force", func() error {
		return errors.Join(wasmList(t, p, "none", "phase:    InForce"), header(t, p, "8080", "resp-header-demo", "good"))
	})
	must(t, answers(p.Out, "http://"+lab.PodIP+":15021/healthz/ready"))
}

// TestWasmFailClosed: a filter that fails closed refuses what it guards while its module cannot be had, in a pod that stays ready, and
// filters from the moment at which it can; a module that is at hand costs no request, neither when its filter comes nor when it goes.
func TestWasmFailClosed(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	s := serveModules(t, p.Lab, map[string][]byte{"/one": proxywasm.Module{Header: "resp-header-demo", Value: "one"}.Bytes()})
	const at = "http://198.51.100.70"
	asked, stop := asking(t, p.Out, "8080", nil)
	p.c.Write(t, "one.yaml", proxywasm.Plugin("one", at+"/one", ""))
	lab.Eventually(t, wasmLimit, "the filter is in force", func() error { return header(t, p, "8080", "resp-header-demo", "one") })
	filtered, stopFiltered := asking(t, p.Out, "8080", map[string]string{"resp-header-demo": "one"})
	must(t, wasmList(t, p, "one", "patch 1:  HTTP_FILTER INSERT_FIRST, applied to virtualInbound"))
	p.c.Write(t, "other.yaml", proxywasm.Plugin("other", at+"/one", ", selector: {matchLabels: {app: other}}"))
	eventually(t, "another pod's is named", func() error {
		return contains(p.c.Run(t, lab.As{UID: lab.AgentUID}, lab.AgentPath, "wasm", "list").Stdout, "WasmPlugin default/other", "Unused", "its selector wants the label app=other")
	})
	p.c.Write(t, "one.yaml", proxywasm.Plugin("one", at+"/late", "")) // which nobody has
	eventually(t, "another module cannot be had", func() error { return wasmList(t, p, "one", "phase:    Stale", "404", "is filtered") })
	if r := p.c.Run(t, lab.As{UID: lab.AgentUID}, lab.AgentPath, "wasm", "reload", "one"); !strings.Contains(r.Stdout, "reloaded extensions.istio.io/wasmplugin/default.one") {
		t.Errorf("%+v", r)
	}
	time.Sleep(time.Second)
	stopFiltered()
	p.c.Remove(t, "one.yaml")
	eventually(t, "the filter is gone", func() error { return header(t, p, "8080", "resp-header-demo", "") })
	stop()
	t.Logf("%d requests, %d of them demanded the header", asked.Load()+filtered.Load(), filtered.Load())

	p.c.Write(t, "late.yaml", proxywasm.Plugin("late", at+"/late", ""))
	eventually(t, "it is refused", func() error {
		status, _, err := p.Out.Get("http://" + lab.PodIP + ":8080/")
		if err == nil && status != http.StatusForbidden {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	must(t, answers(p.Out, "http://"+lab.PodIP+":15021/healthz/ready"))
	s.Put("/late", proxywasm.Module{Header: "resp-header-demo", Value: "late"})
	lab.Eventually(t, wasmLimit, "its module has come", func() error { // at the next try
		status, _, err := p.Out.Get("http://" + lab.PodIP + ":8080/")
		if err == nil && status == http.StatusOK {
			return header(t, p, "8080", "resp-header-demo", "late")
		}
		return fmt.Errorf("status %d, %w", status, errors.Join(err, errors.New("not yet")))
	})
}

// TestWasmUpdatesUnderLoad: one module after another comes into force while the pod serves, with a hot upgrade among them: no request
// fails, and none is without the header of some module.
func TestWasmUpdatesUnderLoad(t *testing.T) {
	t.Parallel()
	const name = "example-filter.wasm"
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	module := func(i int) string {
		return string(proxywasm.Module{Header: "resp-header-demo", Value: fmt.Sprint("v", i)}.Bytes())
	}
	p.slots.Write(t, meshFile, noDetectionTimeout)
	p.slots.Write(t, name, module(0))
	p.slots.Write(t, "filters.yaml", fmt.Sprintf(manualFilter, lab.ConfigMount+"/mesh/"+name))
	p.start(t, 0, p.newer, 1, 0)
	p.mustServe(t, 0, p.newer)
	asked, stop := asking(t, p.Out, "8080", map[string]string{"resp-header-demo": "*"})
	defer stop()
	updates := int(number(t, wasmUpdatesEnv, 6))
	for i := 1; i <= updates; i++ {
		if i == updates/2 {
			p.start(t, 1, p.newer, 2, 1)
			p.waitRole(t, 1, roleServing)
			p.waitRole(t, 0, roleDraining, roleStandby)
		}
		p.slots.Write(t, name, module(i))
		lab.Eventually(t, wasmLimit, fmt.Sprint("update ", i), func() error {
			return headers(t.Context(), p.Out, "8080", map[string]string{"resp-header-demo": fmt.Sprint("v", i)})
		})
	}
	stop()
	t.Logf("%d requests, %d updates, one upgrade", asked.Load(), updates)
}

// TestWasmStart: a pod is not ready, and lets nobody pass, before a filter that fails closed has its module, which is named; one that
// fails open holds it up for moments only. Nothing else waits.
func TestWasmStart(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{noAgent: true})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	s := serveModules(t, p.Lab, map[string][]byte{})
	const at = "http://198.51.100.70"
	p.c.Write(t, meshFile, noDetectionTimeout)
	p.c.Write(t, "closed.yaml", proxywasm.Plugin("closed", at+"/late", ""))
	p.c.Write(t, "http.yaml", entry("http", "http.example", 80, "HTTP", "DNS"))
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: withMeshFile})
	eventually(t, "it says what it waits for", func() error {
		status, body, err := p.Pod.Get("http://127.0.0.1:15020/healthz/ready")
		return errors.Join(err, contains(fmt.Sprint(status, body), "503", "wasm: waiting: the Wasm module of extensions.istio.io/wasmplugin/default.closed is not in force yet", "404"))
	})
	status, _, err := p.Out.Get("http://" + lab.PodIP + ":8080/")
	if err != nil || status != http.StatusForbidden {
		t.Errorf("what it guards is answered: %d, %v", status, err)
	}
	s.Put("/late", proxywasm.Module{Header: "resp-header-demo", Value: "late"})
	p.c.Write(t, "closed.yaml", proxywasm.Plugin("closed", at+"/late?again", ""))
	p.agent.WaitReadyWithin(t, wasmLimit)
	must(t, header(t, p, "8080", "resp-header-demo", "late"))
	p.c.Write(t, "closed.yaml", proxywasm.Plugin("closed", at+"/none", ", failStrategy: FAIL_OPEN"))
	p.agent.Signal(syscall.SIGTERM)
	p.agent.Wait(t, lab.Deadline)
	p.agent = p.c.StartAgent(t, lab.AgentOptions{Args: withMeshFile})
	p.agent.WaitReady(t)
	must(t, header(t, p, "8080", "resp-header-demo", ""))
}

// TestWasmRefusedByEnvoy: where no Envoy tries modules beforehand, the one that serves refuses a bad one, and what served before serves on;
// a filter that is new stands back by its policy. Nothing else is held up.
func TestWasmRefusedByEnvoy(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{agent: lab.AgentOptions{Args: withMeshFile, Env: []string{"UNDERSTUDY_WASM_CHECK=off"}}, files: map[string]string{meshFile: noDetectionTimeout}})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	serveModules(t, p.Lab, map[string][]byte{
		"/good": proxywasm.Module{Header: "resp-header-demo", Value: "good"}.Bytes(), "/refuses": proxywasm.Module{Configure: proxywasm.Refuses}.Bytes(),
	})
	const at = "http://198.51.100.70"
	_, stop := asking(t, p.Out, "8080", nil)
	defer stop()
	p.c.Write(t, "new.yaml", proxywasm.Plugin("new", at+"/refuses", ", failStrategy: FAIL_OPEN"))
	eventually(t, "it is refused", func() error {
		return wasmList(t, p, "new", "phase:    Failed", "Envoy refuses it", "passes unfiltered")
	})
	p.c.Write(t, "one.yaml", proxywasm.Plugin("one", at+"/good", ""))
	eventually(t, "another is in force", func() error { return header(t, p, "8080", "resp-header-demo", "good") })
	filtered, stopFiltered := asking(t, p.Out, "8080", map[string]string{"resp-header-demo": "good"})
	p.c.Write(t, "one.yaml", proxywasm.Plugin("one", at+"/refuses", ""))
	eventually(t, "it is refused", func() error { return wasmList(t, p, "one", "phase:    Stale", "Envoy refuses it", "is filtered") })
	goesOn(t, filtered, 100)
	stopFiltered()
	p.c.Write(t, "new.yaml", proxywasm.Plugin("new", at+"/good", ", failStrategy: FAIL_OPEN"))
	eventually(t, "what is repaired is in force", func() error { return wasmList(t, p, "new", "phase:    InForce") })
}

// TestWasmUpgradeWithoutRegistry: a module out of the store serves on over an upgrade, with nobody to fetch it from; also into a container whose
// data volume is another one and has none.
func TestWasmUpgradeWithoutRegistry(t *testing.T) {
	t.Parallel()
	for name, private := range map[string]bool{"one volume": false, "a volume each": true} {
		t.Run(name, func(t *testing.T) { // one after the other: each asks all the time
			volumes := lab.Volumes()
			data := slices.IndexFunc(volumes, func(v lab.Volume) bool { return v.Name == lab.DataVolume })
			volumes[data].Private = private
			p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile, Volumes: volumes})
			module := proxywasm.Module{Header: "resp-header-demo", Value: "one"}.Bytes()
			s := serveModules(t, p.Lab, map[string][]byte{"/one": module})
			p.slots.Write(t, meshFile, noDetectionTimeout)
			p.slots.Write(t, "one.yaml", proxywasm.Plugin("one", "http://198.51.100.70/one", ", imagePullPolicy: Always"))
			p.start(t, 0, p.older, 1, 0)
			p.mustServe(t, 0, p.older)
			want := map[string]string{"resp-header-demo": "one"}
			must(t, headers(t.Context(), p.Out, "8080", want))
			s.Clear()
			asked, stop := asking(t, p.Out, "8080", want)
			defer stop()
			p.start(t, 1, p.newer, 2, 1)
			p.waitRole(t, 1, roleServing)
			p.waitRole(t, 0, roleDraining, roleStandby)
			goesOn(t, asked, 100)
			stop()
			hash := sha256.Sum256(module)
			kept, err := os.ReadFile(filepath.Join(p.slots.VolumePath(lab.DataVolume, 1), "understudy/wasm/sha256", hex.EncodeToString(hash[:])+".wasm"))
			if err != nil || !bytes.Equal(kept, module) {
				t.Errorf("the newcomer's store has %d bytes of it, %v", len(kept), err)
			}
			t.Logf("%d requests", asked.Load())
		})
	}
}

// TestWasmUpgradeStale: a document that has changed to a module that is bad, or that nobody has, does not keep a pod from an upgrade: the newcomer
// serves with what was in force before, in each response, until what is wanted can be had. Nor does one that never had a module.
func TestWasmUpgradeStale(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	s := serveModules(t, p.Lab, map[string][]byte{
		"/refuses": proxywasm.Module{Configure: proxywasm.Refuses}.Bytes(), "/a": proxywasm.Module{Header: "x-a", Value: "one"}.Bytes(), "/b": proxywasm.Module{Header: "x-b", Value: "one"}.Bytes(),
	})
	write := func(name, path string) {
		p.slots.Write(t, name+".yaml", proxywasm.Plugin(name, modulesURL+path, ", imagePullPolicy: Always"))
	}
	p.slots.Write(t, meshFile, noDetectionTimeout)
	write("a", "/a")
	write("b", "/b")
	p.start(t, 0, p.newer, 1, 0)
	p.mustServe(t, 0, p.newer)
	want := map[string]string{"x-a": "one", "x-b": "one"}
	must(t, headers(t.Context(), p.Out, "8080", want))
	asked, stop := asking(t, p.Out, "8080", want)
	defer stop()
	write("a", "/refuses")
	write("b", "/none")
	wasmPhase(t, p, 0, "a", "Stale")
	wasmPhase(t, p, 0, "b", "Stale")
	p.slots.Write(t, "c.yaml", strings.Replace(proxywasm.Plugin("c", modulesURL+"/none", ""), "mode: SERVER", "mode: SERVER, ports: [{number: 9999}]", 1))
	wasmPhase(t, p, 0, "c", "Failed") // nothing passes on that port, here and there
	p.takeOver(t, 1)
	wasmPhase(t, p, 1, "c", "Failed")
	wasmPhase(t, p, 1, "a", "Stale")
	wasmPhase(t, p, 1, "b", "Stale")
	goesOn(t, asked, 100)
	stop()
	t.Logf("%d requests", asked.Load())
	s.Put("/two", proxywasm.Module{Header: "x-a", Value: "two"})
	write("a", "/two")
	lab.Eventually(t, wasmLimit, "what is repaired is in force", func() error {
		return headers(t.Context(), p.Out, "8080", map[string]string{"x-a": "two", "x-b": "one"})
	})
}

// TestServerSpeaksFirst is why a connection whose client is silent does not wait for ever by default, as under Istio, where ports have
// protocols: a server that speaks first would not get to, but at the ports that istiod knows.
func TestServerSpeaksFirst(t *testing.T) {
	t.Parallel()
	for timeout, greets := range map[string]bool{"": true, noDetectionTimeout: false} {
		p := newPod(t, podOptions{agent: lab.AgentOptions{Args: withMeshFile}, files: map[string]string{meshFile: timeout}})
		speakFirst(t, p.Pod)
		greeted(t, p.Out, 3306, true)
		greeted(t, p.Out, 2121, greets)
	}
}

// speakFirst has two servers in the pod that say something before their clients do.
func speakFirst(t *testing.T, pod *lab.Namespace) {
	t.Helper()
	for _, address := range []string{"[::]:3306", "[::]:2121"} {
		lab.ServeTCP(pod.Listen(t, address), func(c net.Conn) { _, _ = io.WriteString(c, "hello") })
	}
}

// greeted demands that such a server gets to speak, or does not.
func greeted(t *testing.T, out *lab.Namespace, port int, want bool) {
	t.Helper()
	c := dial(t, out, net.JoinHostPort(lab.PodIP, strconv.Itoa(port)))
	wait := 2 * time.Second
	if want {
		wait = lab.Deadline
	}
	must(t, c.SetReadDeadline(time.Now().Add(wait)))
	if n, err := c.Read(make([]byte, 5)); want != (n == 5) {
		t.Errorf("port %d: %d bytes of the greeting, %v", port, n, err)
	}
}

// TestWasmSilentClient: no client gets past a filter that fails closed by saying nothing for longer than other connections may, which then count
// as none of HTTP. What such a filter does not guard is as ever once it has gone.
func TestWasmSilentClient(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{})
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	speakFirst(t, p.Pod)
	late := func() (*http.Response, error) {
		c := dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8080"))
		time.Sleep(time.Second) // ten times protocolDetectionTimeout
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: app\r\n\r\n"); err != nil {
			return nil, err
		}
		must(t, c.SetReadDeadline(time.Now().Add(lab.Deadline)))
		return http.ReadResponse(bufio.NewReader(c), nil)
	}
	status := func(want int) {
		t.Helper()
		if resp, err := late(); err != nil || resp.StatusCode != want {
			t.Errorf("a client that was silent got %+v, %v, want %d", resp, err, want)
		}
	}
	status(http.StatusOK)
	p.c.Write(t, "guard.yaml", proxywasm.Plugin("guard", modulesURL+"/none", ""))
	eventually(t, "it is refused", func() error {
		status, _, err := p.Out.Get("http://" + lab.PodIP + ":8080/")
		if err == nil && status != http.StatusForbidden {
			err = fmt.Errorf("status %d", status)
		}
		return err
	})
	status(http.StatusForbidden)
	greeted(t, p.Out, 3306, true)
	p.c.Remove(t, "guard.yaml")
	eventually(t, "it is gone", func() error { return answers(p.Out, "http://"+lab.PodIP+":8080/") })
	status(http.StatusOK)
	greeted(t, p.Out, 2121, true)
}
