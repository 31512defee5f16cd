package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
)

// manualFilter is the EnvoyFilter of the ASM manual's chapter 4 with the module in a file, for every workload.
const manualFilter = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata:
  name: details-v1-examplefilter
  labels:
    asm-system: 'true'
    provider: asm
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      proxy:
        proxyVersion: '^1\.*.*'
      listener:
        filterChain:
          filter:
            name: envoy.filters.network.http_connection_manager
            subFilter:
              name: envoy.filters.http.router
    patch:
      operation: INSERT_BEFORE
      value:
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm
          config:
            name: example-filter
            rootId: my_root_id
            vmConfig:
              code:
                local:
                  filename: %s
              runtime: envoy.wasm.runtime.v8
              vmId: example-filter
              allow_precompiled: true
        name: envoy.filters.http.wasm
`

// luaFilter adds a header to the answers of one port of the pod.
const luaFilter = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: lua}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_INBOUND
      listener: {portNumber: 8081, filterChain: {filter: {name: envoy.http_connection_manager, subFilter: {name: envoy.router}}}}
    patch:
      operation: INSERT_BEFORE
      value:
        name: envoy.filters.http.lua
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
          defaultSourceCode: {inlineString: "function envoy_on_response(h) h:headers():add('x-lua', '%s') end"}
`

// noDetectionTimeout is a mesh file by which a connection counts as HTTP however long its client, on a busy machine, leaves
// it silent: after 100 ms it would count as TCP, which passes no HTTP filter. Its name is none of a document's.
const (
	meshFile           = "mesh.cfg"
	noDetectionTimeout = "protocolDetectionTimeout: 0s\n"
)

// withMeshFile is the argument that has the agent read it.
var withMeshFile = []string{"--meshConfig", lab.ConfigMount + "/mesh/" + meshFile}

// header asks the pod at a port, and demands the value of a header of the answer; "" is none.
func header(t *testing.T, p *pod, port, name, want string) error {
	t.Helper()
	return headers(t.Context(), p.Out, port, map[string]string{name: want})
}

// headers asks the pod at a port from outside, and demands values of headers of the answer; "*" is any.
func headers(ctx context.Context, out *lab.Namespace, port string, want map[string]string) error {
	status, got, err := answer(ctx, out, port)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("port %s answers with status %d", port, status)
	}
	for name, value := range want {
		if has := got.Get(name); has != value && (value != "*" || has == "") {
			return fmt.Errorf("port %s answers with %s %q, want %q", port, name, has, value)
		}
	}
	return nil
}

// answer asks the pod at a port from outside, on a connection of its own.
func answer(ctx context.Context, out *lab.Namespace, port string) (status int, header http.Header, err error) {
	ctx, cancel := context.WithTimeout(ctx, lab.Deadline)
	defer cancel()
	c, err := out.Dial(ctx, "tcp", net.JoinHostPort(lab.PodIP, port))
	if err != nil {
		return 0, nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(lab.Deadline))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"); err != nil {
		return 0, nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, nil, fmt.Errorf("port %s: %w", port, err)
	}
	return resp.StatusCode, resp.Header, resp.Body.Close()
}

// TestUpgradeWithFilters: no response is without what the filters add, before, in and after upgrades in both directions.
func TestUpgradeWithFilters(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	p.slots.Write(t, meshFile, noDetectionTimeout)
	text, err := os.ReadFile("../../pkg/envoyfilter/testdata/header.wasm")
	must(t, err)
	p.slots.Write(t, "example-filter.wasm", string(text))
	p.slots.Write(t, "filters.yaml", documents(fmt.Sprintf(manualFilter, lab.ConfigMount+"/mesh/example-filter.wasm"),
		strings.Replace(fmt.Sprintf(luaFilter, "on"), "portNumber: 8081", "portNumber: 8080", 1)))
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	both := map[string]string{"resp-header-demo": "added by our filter", "x-lua": "on"}
	must(t, headers(t.Context(), p.Out, "8080", both))

	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked atomic.Int64
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if err := headers(context.WithoutCancel(ctx), p.Out, "8080", both); err != nil {
					t.Error(err)
					return
				}
				asked.Add(1)
			}
		})
	}
	defer clients.Wait()
	defer stop()
	p.start(t, 1, p.newer, 2, 1)
	p.waitRole(t, 1, roleServing)
	p.waitRole(t, 0, roleDraining, roleStandby)
	p.slots.Write(t, "more.yaml", entry("more", "more.example", 80, "HTTP", "DNS")) // the newcomer builds by itself now
	eventually(t, "the newcomer has it", func() error {
		_, body, err := p.Pod.Get("http://127.0.0.1:15020/debug/configz")
		return errors.Join(err, contains(body, "more.yaml", `"result": "applied"`))
	})
	before := asked.Load()
	eventually(t, "it has answered", func() error {
		if asked.Load() < before+50 {
			return errors.New("not yet")
		}
		return nil
	})
	stop()
	clients.Wait()
	t.Logf("%d requests", asked.Load())
}

// TestUpgradeWouldLoseFilter: an Envoy that does not take a filter which the one before has does not take over from it.
func TestUpgradeWouldLoseFilter(t *testing.T) {
	t.Parallel()
	p := newSlotPod(t, lab.SlotsOptions{Args: withMeshFile})
	p.slots.Write(t, meshFile, noDetectionTimeout)
	p.slots.Write(t, "filters.yaml", strings.Replace(fmt.Sprintf(luaFilter, "on"), "portNumber: 8081", "portNumber: 8080", 1))
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	path := filepath.Join(p.Dir, "envoy-without-lua")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\ncase \" $* \" in *' --mode validate '*) for f; do if grep -qs filters.http.lua -- \"$f\"; then echo there is no Lua; exit 1; fi; done;; esac\nexec "+envoyReal+" \"$@\"\n"), 0o755))
	without := p.newer
	without.Name, without.Envoy, without.Files = "proxy:without-lua", path, map[string]string{envoyReal: p.newer.Envoy}
	p.start(t, 1, without, 2, 1)
	eventually(t, "the newcomer says why it does not take over", func() error {
		return contains(p.slot(1).Log.String(), "default/lua: Envoy does not take it: there is no Lua")
	})
	p.slot(1).Log.WaitFor(t, "Envoy serves")
	for range 20 { // a newcomer that is ready takes over in less than these
		must(t, headers(t.Context(), p.Out, "8080", map[string]string{"x-lua": "on"}))
	}
	if err := p.inRole(0, "handing-off"); err != nil {
		t.Error(err)
	}
	must(t, os.Remove(filepath.Join(p.slots.HostConfig, "mesh", "filters.yaml"))) // as its owner decides
	p.waitRole(t, 1, roleServing)
}

// TestEnvoyFilter: filters of documents work on the traffic that they are for, come, change and go while the pod serves,
// with a Wasm module that is late too; a bad one is named, and the others apply.
func TestEnvoyFilter(t *testing.T) {
	t.Parallel()
	const name, module = "example-filter.wasm", "/config/mesh/example-filter.wasm" // as a ConfigMap has it
	p := newPod(t, podOptions{agent: lab.AgentOptions{Args: withMeshFile}, files: map[string]string{
		meshFile: noDetectionTimeout, "lua.yaml": fmt.Sprintf(luaFilter, "one"),
		"wasm.yaml": strings.Replace(fmt.Sprintf(manualFilter, module), "rootId: my_root_id", "rootId: my_root_id\n            failure_policy: FAIL_OPEN", 1),
	}})
	for _, port := range []string{"8080", "8081"} {
		lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:"+port), "app")
	}
	expect := func(what string, demands ...error) {
		t.Helper()
		if err := errors.Join(demands...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect("at the start",
		header(t, p, "8081", "x-lua", "one"), header(t, p, "8080", "x-lua", ""), header(t, p, "8080", "resp-header-demo", ""),
		configz(p, `"phase": "Pending"`, `"instead": "allow"`, module))

	text, err := os.ReadFile("../../pkg/envoyfilter/testdata/header.wasm")
	must(t, err)
	p.c.Write(t, name, string(text))
	eventually(t, "the Wasm filter is in force", func() error { return header(t, p, "8080", "resp-header-demo", "added by our filter") })
	expect("beside it", header(t, p, "8081", "x-lua", "one"), header(t, p, "8081", "resp-header-demo", "added by our filter"))

	p.c.Write(t, "lua.yaml", fmt.Sprintf(luaFilter, "two"))
	eventually(t, "the changed filter is in force", func() error { return header(t, p, "8081", "x-lua", "two") })

	p.c.Write(t, "bad.yaml", "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: bad}\nspec: {configPatches: [{applyTo: HTTP_FILTER, "+
		"match: {context: SIDECAR_INBOUND}, patch: {operation: ADD, value: {name: late, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, maxRequestBytes: 1}}}}]}\n")
	eventually(t, "the bad filter is named", func() error { return configz(p, "refused", "INSERT_BEFORE or INSERT_FIRST") })
	expect("beside a bad one", header(t, p, "8081", "x-lua", "two"), header(t, p, "8080", "resp-header-demo", "added by our filter"))

	p.c.Write(t, "lua.yaml", fmt.Sprintf(luaFilter, "three') oops ("))
	eventually(t, "the broken script is named", func() error { return configz(p, "script load error", "its version before stays in force") })
	expect("beside a broken script", header(t, p, "8081", "x-lua", "two"), header(t, p, "8080", "resp-header-demo", "added by our filter"))
	if _, stats, err := p.Pod.Get("http://127.0.0.1:15000/stats?filter=update_rejected"); err != nil || !strings.Contains(stats, "listener_manager.lds.update_rejected: 0") {
		t.Errorf("the Envoy that serves was asked: %v, %s", err, stats)
	}

	for _, name := range []string{"lua.yaml", "wasm.yaml", "bad.yaml"} {
		must(t, os.Remove(filepath.Join(p.c.ConfigDir(), name)))
	}
	eventually(t, "all filters are gone", func() error {
		return errors.Join(header(t, p, "8081", "x-lua", ""), header(t, p, "8080", "resp-header-demo", ""))
	})
}

// otherFilters are for what the application calls, and for connections to it.
const otherFilters = `apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: outbound}
spec:
  configPatches:
  - applyTo: HTTP_FILTER
    match:
      context: SIDECAR_OUTBOUND
      listener: {portNumber: 80, filterChain: {filter: {name: envoy.filters.network.http_connection_manager}}}
    patch:
      operation: INSERT_FIRST
      value:
        name: mutation
        config_discovery: {config_source: {ads: {}}, type_urls: [type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation]}
  - applyTo: EXTENSION_CONFIG
    patch:
      operation: ADD
      value:
        name: mutation
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation
          mutations: {response_mutations: [{append: {header: {key: x-outbound, value: "yes"}}}]}
---
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: inbound}
spec:
  configPatches:
  - applyTo: NETWORK_FILTER
    match: {context: SIDECAR_INBOUND, listener: {portNumber: 9000}}
    patch:
      operation: INSERT_FIRST
      value:
        name: envoy.filters.network.rbac
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC
          stat_prefix: tcp.
          rules: {action: DENY, policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}
`

// TestEnvoyFilterOutbound: an HTTP filter on what the application calls, its configuration by name, and a network filter
// that closes the connections to one port of the pod and to no other.
func TestEnvoyFilterOutbound(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{
		"filters.yaml": otherFilters, "http.yaml": entry("http", "http.example", 80, "HTTP", "DNS"),
	}})
	for _, addr := range []string{"198.51.100.11:80", "[2001:db8::11]:80"} {
		lab.ServeHTTP(t, p.Out.Listen(t, addr), "http")
	}
	for _, port := range []string{"9000", "9001"} {
		lab.ServeTCP(p.Pod.Listen(t, "[::]:"+port), lab.Echo)
	}
	c := dial(t, p.Pod, net.JoinHostPort(p.vip(t, "http.example", dns.TypeA).String(), "80"))
	send(t, c, "GET / HTTP/1.1\r\nHost: http.example\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must(t, err)
	defer resp.Body.Close()
	if got := resp.Header.Get("x-outbound"); got != "yes" || resp.StatusCode != http.StatusOK {
		t.Errorf("%s with x-outbound %q", resp.Status, got)
	}
	open := dial(t, p.Out, net.JoinHostPort(lab.PodIP, "9001"))
	send(t, open, "echo")
	expect(t, open, "echo")
	denied := dial(t, p.Out, net.JoinHostPort(lab.PodIP, "9000"))
	_, _ = io.WriteString(denied, "echo")
	if n, err := denied.Read(make([]byte, 4)); err == nil {
		t.Errorf("the application was reached: %d bytes", n)
	}
}
