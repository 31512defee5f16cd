package profile

import (
	"fmt"
	"strings"
	"testing"
)

// profileText is a profile with a spec in YAML's flow style.
func profileText(metadata, spec string) []byte {
	return fmt.Appendf(nil, "apiVersion: understudy.mesh/v1alpha1\nkind: SidecarProfile\nmetadata: {%s}\nspec: {%s}\n", metadata, spec)
}

func TestWrongValuesAreNamed(t *testing.T) {
	selectors := strings.Repeat("{matchLabels: {a: b}},", 65)
	tests := []struct{ spec, want string }{
		{`preset: ams`, `spec.preset: "ams": want one of istio, asm`},
		{`injection: {neverInjectSelector: [{matchLabels: {a: b}}, {}]}`, `spec.injection.neverInjectSelector[1]: "{}": an empty selector matches every pod`},
		{`injection: {alwaysInjectSelector: [{matchExpressions: [{key: a, operator: Exist}]}]}`, `spec.injection.alwaysInjectSelector[0]: "Exist" is not a valid label selector operator`},
		{`injection: {alwaysInjectSelector: [` + selectors + `]}`, `spec.injection.alwaysInjectSelector: "65": want at most 64 selectors`},
		{`injection: {injectedAnnotations: {sidecar.istio.io/status: x}}`, `spec.injection.injectedAnnotations.sidecar.istio.io/status: "x": the injector writes this annotation itself`},
		{`injection: {injectedAnnotations: {version.understudy.mesh/istio-proxy: x}}`, `the injector writes this annotation itself`},
		{`injection: {injectedAnnotations: {"a b": x}}`, `spec.injection.injectedAnnotations.a b: "a b": name part must consist`},
		{`injector: {replicaCount: 0}`, `spec.injector.replicaCount: "0": want a whole number from 1 to 50`},
		{`injector: {replicaCount: 51}`, `spec.injector.replicaCount`},
		{`injector: {nodeSelector: {os: "a b"}}`, `spec.injector.nodeSelector.os: "a b"`},
		{`proxy: {config: "concurrenzy: 1"}`, `spec.proxy.config: concurrenzy: unknown field of ProxyConfig`},
		{`proxy: {config: "concurrency: much"}`, `spec.proxy.config: concurrency: "much": want a number`},
		{`proxy: {config: "terminationDrainDuration: 2h"}`, `spec.proxy.config`},
		{`proxy: {config: "{a: 1, a: 2}"}`, `already set in map`},
		{`proxy: {config: "proxyMetadata: {ISTIO_META_DNS_CAPTURE: maybe}"}`, `spec.proxy.config.proxyMetadata: ISTIO_META_DNS_CAPTURE: "maybe": want true or false`},
		{`proxy: {config: "proxyMetadata: {PROXY_CONFIG: x}"}`, `spec.proxy.config, proxy.env.PROXY_CONFIG: "x": the injector sets it`},
		{`proxy: {image: "a b"}`, `spec.proxy.image: "a b": want the name of an image`},
		{`proxy: {imagePullPolicy: Sometimes}`, `spec.proxy.imagePullPolicy: "Sometimes": want one of Always, IfNotPresent, Never`},
		{`proxy: {imagePullSecrets: [A_b]}`, `spec.proxy.imagePullSecrets[0]: "A_b"`},
		{`proxy: {resources: {limits: {memory: 1025}}}`, `spec.proxy.resources.limits.memory: "1025": 1025 bytes are less than any container needs, 4Mi; 1025Mi?`},
		{`proxy: {resources: {requests: {cpu: 3}, limits: {cpu: 2}}}`, `spec.proxy.resources.requests.cpu: "3": want at most the limit, 2`},
		{`proxy: {resources: {requests: {cpu: -1}}}`, `want a quantity that is not negative`},
		{`init: {resources: {requests: {memory: 1Ki}}}`, `spec.init.resources.requests.memory: "1Ki": 1024 bytes`},
		{`proxy: {logLevel: "misc:error"}`, `spec.proxy.logLevel: "misc:error": want a level besides`},
		{`proxy: {componentLogLevel: "error"}`, `spec.proxy.componentLogLevel: "error": want component:level parts`},
		{`proxy: {agentLogLevel: "dns:loud"}`, `spec.proxy.agentLogLevel: "dns:loud"`},
		{`proxy: {concurrency: -1}`, `spec.proxy.concurrency: "-1": want a whole number from 0`},
		{`proxy: {lifecycle: {preStop: {}}}`, `spec.proxy.lifecycle.preStop: want exactly one of exec`},
		{`proxy: {terminationDrainDuration: 1500ms}`, `spec.proxy.terminationDrainDuration: "1.5s": want whole seconds from 0s to 1h0m0s`},
		{`proxy: {terminationDrainDuration: 61m}`, `want whole seconds`},
		{`proxy: {statusPort: 15006}`, `spec.proxy.statusPort: "15006": the agent or Envoy has this port`},
		{`proxy: {statusPort: 65536}`, `spec.proxy.statusPort: "65536": want a whole number from 0 to 65535`},
		{`proxy: {readiness: {periodSeconds: 0}}`, `spec.proxy.readiness.periodSeconds: "0": want a whole number from 1`},
		{`proxy: {env: {ISTIO_META_DNS_CAPTURE: "true"}}`, `spec.proxy.env.ISTIO_META_DNS_CAPTURE: "true": the injector sets it: use spec.dns.capture`},
		{`proxy: {env: {POD_NAME: x}}`, `spec.proxy.env.POD_NAME: "x": the injector sets it: remove it`},
		{`proxy: {env: {"a=b": x}}`, `spec.proxy.env.a=b: "a=b"`},
		{`proxy: {native: Maybe}`, `spec.proxy.native: "Maybe": want one of Auto, Always, Never`},
		{`proxy: {seccompProfile: {type: Localhost}}`, `spec.proxy.seccompProfile.localhostProfile: want it with type Localhost`},
		{`init: {image: ""}`, `spec.init.image: want the name of an image`},
		{`capture: {mode: Off2}`, `spec.capture.mode: "Off2": want one of REDIRECT, TPROXY, NONE`},
		{`capture: {includeOutboundIPRanges: ["*", 10.0.0.0/8]}`, `spec.capture.includeOutboundIPRanges[0]: "*": want a CIDR, such as 10.0.0.0/8, or "*" alone for all`},
		{`capture: {excludeOutboundIPRanges: ["*"]}`, `spec.capture.excludeOutboundIPRanges[0]: "*": want a CIDR`},
		{`capture: {excludeInboundPorts: [80, http]}`, `spec.capture.excludeInboundPorts[1]: "http": want a port from 1 to 65535`},
		{`capture: {includeOutboundPorts: ["*"]}`, `spec.capture.includeOutboundPorts[0]: "*": want a port`},
		{`capture: {excludeInterfaces: ["a b"]}`, `spec.capture.excludeInterfaces[0]: "a b": want the name of a network interface`},
		{`hotUpgrade: {emptyImage: "a b"}`, `spec.hotUpgrade.emptyImage`},
		{`hotUpgrade: {handoffDir: uds}`, `spec.hotUpgrade.handoffDir: "uds": want an absolute path`},
		{`hotUpgrade: {upgradeDrainDuration: 1ms}`, `spec.hotUpgrade.upgradeDrainDuration`},
		{`hotUpgrade: {standbyRequests: None}`, `spec.hotUpgrade.standbyRequests: "None": want one of Same, Resize`},
		{`wasm: {pullSecrets: [A]}`, `spec.wasm.pullSecrets[0]: "A"`},
		{`controlPlane: {mode: xds}`, `spec.controlPlane.mode: "xds": want one of istiod, files`},
		{`controlPlane: {configMap: A}`, `spec.controlPlane.configMap: "A"`},
		{`controlPlane: {discoveryAddress: istiod}`, `spec.controlPlane.discoveryAddress: "istiod": want host:port`},
		{`controlPlane: {caAddress: "istiod:0"}`, `spec.controlPlane.caAddress: "istiod:0"`},
		{`controlPlane: {trustDomain: A}`, `spec.controlPlane.trustDomain: "A": want a domain`},
		{`controlPlane: {clusterDomain: ""}`, `spec.controlPlane.clusterDomain: want a domain`},
	}
	for _, tt := range tests {
		p, err := Decode(profileText("name: default", tt.spec))
		if err != nil {
			t.Errorf("%s: %v", tt.spec, err)
			continue
		}
		if err := p.Validate(""); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.spec, err, tt.want)
		}
	}
}

func TestWhoMaySetWhat(t *testing.T) {
	tests := []struct{ metadata, spec, want string }{
		{"name: default", "preset: asm, injection: {paused: true}, injector: {replicaCount: 2}", ""},
		{"name: default, namespace: own", "preset: asm", ""},
		{"name: default, namespace: shop", "preset: asm", "spec.preset: only the profile of the injector's own namespace has it"},
		{"name: default, namespace: shop", "injection: {paused: true}", "spec.injection: only"},
		{"name: default, namespace: shop", "injector: {manage: true}", "spec.injector: only"},
		{"name: default, namespace: shop", "dns: {capture: true}", ""},
		{"name: other", "dns: {capture: true}", `metadata.name: "other": want default`},
	}
	for _, tt := range tests {
		p, err := Decode(profileText(tt.metadata, tt.spec))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Validate("own"); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s, %s: %v, want %q", tt.metadata, tt.spec, err, tt.want)
		}
	}
}

// All of it that is right, so that no rule is wrong about what users write.
func TestRightValues(t *testing.T) {
	s := decoded(t, `
  injection:
    enableNamespacesByDefault: true
    alwaysInjectSelector: [{matchExpressions: [{key: key1, operator: Exists}]}, {matchExpressions: [{key: key2, operator: Exists}]}]
    neverInjectSelector: [{matchExpressions: [{key: key3, operator: Exists}]}, {matchExpressions: [{key: key4, operator: Exists}]}]
    injectedAnnotations: {test/istio-init: runtime/default, test/istio-proxy: runtime/default}
  injector: {replicaCount: 2, nodeSelector: {beta.kubernetes.io/os: linux}, manage: true}
  proxy:
    config: "{tracing: {zipkin: {address: 'zipkin:9411'}}, parentShutdownDuration: 60s, proxyStatsMatcher: {inclusionPrefixes: [a]}, runtimeValues: {a: b}, proxyMetadata: {EXIT_ON_ZERO_ACTIVE_CONNECTIONS: 'true'}}"
    image: registry-vpc.cn-hangzhou.aliyuncs.com/acs/proxyv2:v1.10.5-33-gba0adb2df7-pro-aliyun@sha256:abc
    logLevel: "warning,misc:error"
    agentLogLevel: info
    componentLogLevel: ""
    statusPort: 0
    seccompProfile: {type: Localhost, localhostProfile: a.json}
    terminationDrainDuration: 1h
    env: {GOMEMLIMIT: 1GiB, DNS_AGENT: ""}
    resources: {requests: {cpu: 0, memory: 0}}
  capture: {includeOutboundIPRanges: [], includeInboundPorts: ["*"], excludeOutboundIPRanges: ["2001:db8::/32"], excludeInboundPorts: ["80", 81]}
  hotUpgrade: {emptyImage: ""}
  controlPlane: {mode: files, configMap: mesh.config, discoveryAddress: "[::1]:15012"}
`)
	settings := Resolve(Layer{SourceMesh, s})
	if settings.Hot() || *settings.Proxy.StatusPort != 0 || len(settings.Capture.IncludeOutboundIPRanges) != 0 || *settings.Proxy.ComponentLogLevel != "" {
		t.Error("an empty value is not there")
	}
}

func TestDecodeIsStrict(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "not an empty document"},
		{"a: [", "want YAML"},
		{"apiVersion: v1\nkind: Pod", `apiVersion "v1", kind "Pod": want understudy.mesh/v1alpha1 and SidecarProfile`},
		{string(profileText("name: default", "proxi: {}")), `unknown field "spec.proxi"`},
		{string(profileText("name: default", "proxy: {Image: x}")), `unknown field "spec.proxy.Image"`},
		{string(profileText("name: default", "proxy: {lifecycle: {preStop: {exe: 1}}}")), `unknown field "spec.proxy.lifecycle.preStop.exe"`},
		{string(profileText("name: default", "preset: asm")) + "spec: {}\n", `line 5: key "spec" already set`},
		{string(profileText("name: default", "proxy: {concurrency: many}")), "concurrency"},
		{string(profileText("name: default", "proxy: {terminationDrainDuration: 10}")), "want a SidecarProfile"},
		{strings.Repeat("#", maxBytes+1), "want at most"},
	}
	for _, tt := range tests {
		if _, err := Decode([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n\n") {
			t.Errorf("%.80q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestCheckOfTheWhole(t *testing.T) {
	hot := `hotUpgrade: {emptyImage: e}, proxy: {image: i, lifecycle: {postStart: {exec: {command: %s}}%s}}`
	tests := []struct{ spec, err, warning string }{
		{"proxy: {image: i}", "", ""},
		{"", "proxy.image (not set): nobody has set it", ""},
		{"proxy: {image: i}, controlPlane: {mode: files}", "controlPlane.mode (mesh): files needs a ConfigMap", ""},
		{"proxy: {image: i}, controlPlane: {mode: files, configMap: c}", "", ""},
		{fmt.Sprintf(hot, `[pilot-agent, wait]`, ""), "", ""},
		{fmt.Sprintf(hot, `[/usr/local/bin/pilot-agent, wait, --timeoutSeconds=5]`, ""), "", ""},
		{fmt.Sprintf(hot, `[/bin/sh, -c, "exec pilot-agent wait"]`, ""), "", ""},
		{fmt.Sprintf(hot, `[sleep, "1"]`, ""), "proxy.lifecycle (mesh): with hotUpgrade", ""},
		{fmt.Sprintf(hot, `[pilot-agent, request]`, ""), "with hotUpgrade", ""},
		{fmt.Sprintf(hot, `[pilot-agent, wait]`, ", preStop: {exec: {command: [sleep, '1']}}"), "", "preStop runs in both slots"},
		{"proxy: {image: i, lifecycle: {preStop: {exec: {command: [a]}}}}", "", ""},
		{"proxy: {image: i, terminationDrainDuration: 31s}", "", "proxy.terminationDrainDuration (mesh): 31s is more than"},
		{"proxy: {image: i, terminationDrainDuration: 30s}", "", ""},
	}
	for _, tt := range tests {
		p, err := Decode(profileText("name: default", tt.spec))
		if err != nil {
			t.Fatal(err)
		}
		warnings, err := Resolve(Layer{SourceMesh, &p.Spec}).Check(30)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.spec, err, tt.err)
		}
		if got := strings.Join(warnings, "\n"); (got == "") != (tt.warning == "") || !strings.Contains(got, tt.warning) {
			t.Errorf("%s: warnings %q, want %q", tt.spec, got, tt.warning)
		}
	}
}

// Whatever comes, it is decoded or refused; what Validate accepts resolves to settings that are whole.
func FuzzDecodeAndResolve(f *testing.F) {
	f.Add(profileText("name: default", "preset: asm"), profileText("name: default", "proxy: {config: 'concurrency: 1'}"))
	f.Add([]byte(chapter8), profileText("name: default", "capture: {excludeInboundPorts: [1, '2']}"))
	f.Add(profileText("name: default", "proxy: {env: {A: b}, config: 'proxyMetadata: {A: c, TRUST_DOMAIN: x}'}"), []byte("---"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var layers []Layer
		for i, text := range [][]byte{first, second} {
			p, err := Decode(text)
			if err != nil {
				continue
			}
			if p.Validate("") == nil {
				layers = append(layers, Layer{[]string{"namespace x", SourceMesh}[i], &p.Spec})
			}
		}
		s := Resolve(layers...)
		for _, row := range s.Rows() {
			if row.Value != nil && row.Source == "" {
				t.Errorf("%s has no source", row.Field)
			}
		}
		if *s.Proxy.StatusPort < 0 || *s.Proxy.Config == "" || s.Proxy.Env == nil {
			t.Error("not whole")
		}
		_, _ = s.Check(30)
	})
}

func FuzzAnnotations(f *testing.F) {
	for _, a := range annotations() {
		f.Add(a.names[0], "1")
	}
	f.Add("proxy.istio.io/config", "tracing: {sampling: 1}")
	f.Fuzz(func(t *testing.T, name, value string) {
		layers, _, err := FromAnnotations(map[string]string{name: value})
		if err != nil && layers != nil {
			t.Error("layers in spite of an error")
		}
		if err == nil {
			Resolve(layers...)
		}
	})
}
