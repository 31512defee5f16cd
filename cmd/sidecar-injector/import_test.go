package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// istioConfigMap is a ConfigMap with texts as its keys.
func istioConfigMap(t *testing.T, name string, data map[string]string) string {
	t.Helper()
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": name, "namespace": "istio-system"}, "data": data})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const istioMesh = `
accessLogFile: /dev/stdout
trustDomain: example.org
enablePrometheusMerge: false
rootNamespace: istio-system
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  holdApplicationUntilProxyStarts: true
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}
  tracing: {zipkin: {address: "zipkin:9411"}}
`

// istioValues are the chart's defaults but for some.
const istioValues = `{"global": {"istioNamespace": "istio-system", "logAsJson": false, "nativeNftables": false, "logging": {"level": "default:debug"},
"imagePullPolicy": "", "imagePullSecrets": ["a"], "caAddress": "", "meshID": "mesh1", "network": "net1", "multiCluster": {"clusterName": "c1"}, "pilotCertProvider": "istiod",
"mountMtlsCerts": false, "remotePilotAddress": "",
"proxy": {"image": "proxyv2", "autoInject": "enabled", "clusterDomain": "cluster.local", "componentLogLevel": "misc:error", "excludeInboundPorts": "80, 81", "includeInboundPorts": "*",
 "includeIPRanges": "", "excludeIPRanges": "10.0.0.0/8", "includeOutboundPorts": "", "excludeOutboundPorts": "", "logLevel": "warning", "outlierLogPath": "", "privileged": false, "seccompProfile": {},
 "readinessFailureThreshold": 4, "readinessInitialDelaySeconds": 0, "readinessPeriodSeconds": 20, "startupProbe": {"enabled": true, "failureThreshold": 600},
 "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2000m", "memory": "1024Mi"}}, "statusPort": 15020, "tracer": "none"},
"proxy_init": {"image": "proxyv2", "forceApplyIptables": false}},
"sidecarInjectorWebhook": {"neverInjectSelector": [], "alwaysInjectSelector": [], "injectedAnnotations": {}, "enableNamespacesByDefault": true, "reinvocationPolicy": "Never", "rewriteAppHTTPProbe": true,
 "templates": {}, "defaultTemplates": []}, "pilot": {"cni": {"enabled": true}}}`

const istioInjector = `
defaultTemplates: [sidecar]
policy: disabled
alwaysInjectSelector: [{matchLabels: {a: b}}]
neverInjectSelector: []
injectedAnnotations: {x/y: z}
templates: {sidecar: "x", gateway: "y"}
`

const istioProxyConfigs = `
apiVersion: v1
kind: List
items:
- {apiVersion: networking.istio.io/v1beta1, kind: ProxyConfig, metadata: {name: p, namespace: shop}, spec: {concurrency: 3, environmentVariables: {A: b}}}
- {apiVersion: networking.istio.io/v1beta1, kind: ProxyConfig, metadata: {name: p, namespace: istio-system}, spec: {concurrency: 2}}
`

func TestImportSaysTheSame(t *testing.T) {
	paths := files(t, istioConfigMap(t, "istio", map[string]string{"mesh": istioMesh}),
		istioConfigMap(t, "istio-sidecar-injector", map[string]string{"values": istioValues, "config": istioInjector}), istioProxyConfigs)
	status, stdout, stderr := execute("", "import", "-f", paths[0], "-f", paths[1], "-f", paths[2])
	if status != 0 || stderr != "" {
		t.Fatalf("status %d: %s", status, stderr)
	}
	imported := t.TempDir() + "/imported.yaml"
	if err := os.WriteFile(imported, []byte(stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := "kind: Pod\nmetadata: {name: p, namespace: shop, labels: {a: b}}\nspec: {containers: [{name: a}]}\n"
	status, explained, stderr := execute(pod, "explain", "-f", "-", "--settings", imported)
	if status != 0 {
		t.Fatalf("status %d: %s\n%s", status, stderr, stdout)
	}
	for _, want := range []string{
		"Pod shop/p is injected: always-selector[0]",
		"injection.enableNamespacesByDefault|true|mesh", "injection.autoInjectByAnnotation|false|mesh", `injection.injectedAnnotations|{"x/y":"z"}|mesh`,
		"proxy.concurrency|3|namespace shop", "proxy.env.A|b|namespace shop", "dns.capture|true|mesh", "proxy.holdApplicationUntilProxyStarts|true|mesh",
		`proxy.config.tracing|{"zipkin":{"address":"zipkin:9411"}}|mesh`, "proxy.mergePrometheus|false|mesh", "controlPlane.trustDomain|example.org|mesh",
		"proxy.agentLogLevel|default:debug|mesh", `proxy.imagePullSecrets|["a"]|mesh`, "controlPlane.meshID|mesh1|mesh", "controlPlane.network|net1|mesh",
		"controlPlane.clusterID|c1|mesh", "capture.includeOutboundIPRanges|[]|mesh", `capture.excludeOutboundIPRanges|["10.0.0.0/8"]|mesh`,
		`capture.excludeInboundPorts|[15090,15021,15020,"80","81"]|mesh, built-in`, "proxy.readiness.periodSeconds|20|mesh", "init.cni|true|mesh",
		`proxy.resources|{"limits":{"cpu":"2","memory":"1Gi"},"requests":{"cpu":"100m","memory":"128Mi"}}|mesh`,
	} {
		if !strings.Contains(squeezed(explained), want) {
			t.Errorf("no %q in\n%s\nof\n%s", want, explained, stdout)
		}
	}
}

// The ProxyConfig of Istio's root namespace is the mesh's.
func TestImportOfTheRootNamespace(t *testing.T) {
	_, profiles, stderr := execute(istioProxyConfigs, "import", "-f", "-")
	pod := "kind: Pod\nmetadata: {name: p, namespace: other}\nspec: {containers: [{name: a}]}\n"
	_, explained, _ := execute(pod, "explain", "-f", "-", "--settings", files(t, profiles)[0])
	if want := "proxy.concurrency|2|mesh"; !strings.Contains(squeezed(explained), want) {
		t.Errorf("no %q in\n%s\nof\n%s%s", want, explained, profiles, stderr)
	}
}

func TestImportListsWhatItCannotCarry(t *testing.T) {
	values := `{"global": {"pilotCertProvider": "kubernetes", "proxy": {"privileged": true, "bogus": 1, "startupProbe": {"enabled": false}, "resources": {"limits": {"memory": "1025"}}}},
"sidecarInjectorWebhook": {"templates": {"custom": "x"}}}`
	config := "policy: off\ndefaultTemplates: [sidecar, custom]\naliases: {a: [sidecar]}\nneverInjectSelector: [{}]\ntemplates: {custom: x}\n"
	proxyConfig := "kind: ProxyConfig\nmetadata: {name: p, namespace: shop}\nspec: {selector: {matchLabels: {a: b}}}\n---\n" +
		"kind: ProxyConfig\nmetadata: {name: q, namespace: shop}\nspec: {image: {imageType: debug}, environmentVariables: {POD_NAME: x}}\n"
	paths := files(t, istioConfigMap(t, "istio-sidecar-injector-canary", map[string]string{"values": values, "config": config})+"---\n"+proxyConfig)
	status, stdout, stderr := execute("", "import", "-f", paths[0])
	if status != 1 || !strings.Contains(stdout, "kind: SidecarProfile") {
		t.Errorf("status %d: %s", status, stdout)
	}
	for _, want := range []string{
		"ConfigMap istio-sidecar-injector-canary, values: global.pilotCertProvider: \"kubernetes\": ", "global.proxy.privileged: true: ", "global.proxy.bogus: 1: there is no such setting",
		"global.proxy.startupProbe.enabled: false: ", `sidecarInjectorWebhook.templates: {"custom":"x"}: `,
		`config: policy: false: it injects nothing`, "config: defaultTemplates: ", "config: aliases: ", "config: neverInjectSelector[0]: {}: ", `config: templates: "custom": `,
		"ProxyConfig shop/p: spec.selector: ", "ProxyConfig shop/q: spec.image: ",
		"namespace shop: spec.proxy.env.POD_NAME: \"x\": the injector sets it", "namespace understudy-system: spec.proxy.resources.limits.memory: \"1025\"",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in\n%s", want, stderr)
		}
	}
	if n := strings.Count(stderr, "\n") - 1; n != 14 {
		t.Errorf("%d lines, want 14:\n%s", n, stderr)
	}
}

func TestImportOfNothing(t *testing.T) {
	if status, _, stderr := execute("kind: Pod\n", "import", "-f", "-"); status != 1 || !strings.Contains(stderr, "none of the files has") {
		t.Errorf("%d: %s", status, stderr)
	}
	if status, _, stderr := execute("", "import", "-f", "-", "--revision", "x"); status != 2 || !strings.Contains(stderr, "flags --kubeconfig and --revision") {
		t.Errorf("%d: %s", status, stderr)
	}
	t.Setenv("KUBECONFIG", t.TempDir()+"/none")
	if status, _, stderr := execute("", "import"); status != 1 || !strings.Contains(stderr, "or give files of Istio's objects: -f FILE") {
		t.Errorf("%d: %s", status, stderr)
	}
	empty := apiServer(t, nil)
	if status, _, stderr := execute("", "import", "--kubeconfig", empty, "--revision", "canary"); status != 1 || !strings.Contains(stderr, "namespace istio-system of the cluster has no ConfigMap istio-canary or istio-sidecar-injector-canary") {
		t.Errorf("%d: %s", status, stderr)
	}
	bad := istioConfigMap(t, "istio", map[string]string{"mesh": "a: 1\na: 2\n"})
	if status, _, stderr := execute(bad, "import", "-f", "-"); status != 1 || !strings.Contains(stderr, `ConfigMap istio, key mesh: want YAML: line 2: key "a" already set`) {
		t.Errorf("%d: %s", status, stderr)
	}
}

// asJSON is YAML as the API server writes it.
func asJSON(t *testing.T, text string) string {
	t.Helper()
	out, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestImportFromACluster: the same as of files, from where Istio has it; a revision has ConfigMaps of its own.
func TestImportFromACluster(t *testing.T) {
	mesh, injector := map[string]string{"mesh": istioMesh}, map[string]string{"values": istioValues, "config": istioInjector}
	paths := files(t, istioConfigMap(t, "istio", mesh), istioConfigMap(t, "istio-sidecar-injector", injector), istioProxyConfigs)
	_, want, _ := execute("", "import", "-f", paths[0], "-f", paths[1], "-f", paths[2])
	for _, suffix := range []string{"", "-canary"} {
		const maps = "/api/v1/namespaces/istio-system/configmaps/"
		arguments := []string{"import", "--kubeconfig", apiServer(t, map[string]string{
			maps + "istio" + suffix:                          asJSON(t, istioConfigMap(t, "istio"+suffix, mesh)),
			maps + "istio-sidecar-injector" + suffix:         asJSON(t, istioConfigMap(t, "istio-sidecar-injector"+suffix, injector)),
			"/apis/networking.istio.io/v1beta1/proxyconfigs": asJSON(t, istioProxyConfigs),
		})}
		if suffix != "" {
			arguments = append(arguments, "--revision", strings.TrimPrefix(suffix, "-"))
		}
		if status, got, stderr := execute("", arguments...); status != 0 || got != want || want == "" {
			t.Errorf("%s: %d: %s%s\nwant\n%s", suffix, status, got, stderr, want)
		}
	}
}

// TestImportOfIstiosChart: what the chart makes by default is carried whole, and is what our defaults are.
func TestImportOfIstiosChart(t *testing.T) {
	status, imported, stderr := execute("", "import", "-f", "testdata/istio-chart.yaml")
	if status != 0 || stderr != "" {
		t.Fatalf("%d: %s", status, stderr)
	}
	const pod = "kind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a}]}\n"
	_, want, _ := execute(pod, "inject", "-f", "-", "--offline")
	status, got, stderr := execute(pod, "inject", "-f", "-", "--settings", files(t, imported)[0])
	hash := regexp.MustCompile(`"understudy.mesh/hash":"\w+"`)
	if diff := cmp.Diff(hash.ReplaceAllString(want, ""), hash.ReplaceAllString(got, "")); status != 0 || diff != "" {
		t.Errorf("%d: %s\n%s\nof\n%s", status, stderr, diff, imported)
	}
}
