package main

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/tests/golden"
)

// manualProfile are the settings of the SidecarSet in ASM's manual, chapter 7.
const manualProfile = `apiVersion: understudy.mesh/v1alpha1
kind: SidecarProfile
metadata: {name: default, namespace: understudy-system}
spec:
  preset: asm
  proxy: {image: "registry.example/acs/asm-istio-proxy:1", concurrency: 2}
  init: {image: "registry.example/acs/proxyv2:1.6.8"}
  capture: {excludeOutboundIPRanges: [172.23.0.1/32]}
  hotUpgrade: {emptyImage: "registry.example/acs/asm-istio-proxy-empty:1"}
`

// manualDeployment is the application of that chapter.
const manualDeployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: nginx-deployment}
spec:
  selector: {matchLabels: {app: nginx}}
  template:
    metadata: {labels: {app: nginx, sidecarset-injected: "true"}}
    spec: {containers: [{name: nginx, image: "nginx:1.14.2", ports: [{containerPort: 80}]}]}
`

// TestSidecarSetOfTheManual holds that of the manual's application, and how it differs from the manual's.
func TestSidecarSetOfTheManual(t *testing.T) {
	profile := files(t, manualProfile)[0]
	status, out, notes := execute(manualDeployment, "sidecarset", "-n", "default", "--settings", profile, "-f", "-", "-o", "json")
	if status != 0 {
		t.Fatalf("%d: %s", status, notes)
	}
	golden.Check(t, filepath.Join("testdata", "sidecarset.json"), out)
	if want := "default-nginx-deployment: the pod template has no label security.istio.io/tlsMode=istio: without it peers send plain text\n"; notes != want {
		t.Errorf("notes %q, want %q", notes, want)
	}
	var set inject.SidecarSet
	if err := json.Unmarshal([]byte(out), &set); err != nil {
		t.Fatal(err)
	}
	slot := set.Spec.Containers[0]
	const ofNode, newer, ownWay = "Istio's agents after 1.6 have it from elsewhere", "Istio's injectors after 1.6 set it", "the agent has no use for it"
	compare(t, "flags", flags(slot.Args),
		"--domain --serviceCluster --drainDuration --parentShutdownDuration --discoveryAddress --zipkinAddress --proxyLogLevel --proxyComponentLogLevel --proxyAdminPort --concurrency --controlPlaneAuthPolicy --dnsRefreshRate --statusPort --trust-domain --controlPlaneBootstrap",
		map[string]string{
			"--serviceCluster": ofNode, "--drainDuration": "the agent's default", "--parentShutdownDuration": "--upgradeDrainDuration", "--discoveryAddress": "the agent's default",
			"--zipkinAddress": "proxy.config", "--proxyAdminPort": ownWay, "--controlPlaneAuthPolicy": "15012 is TLS whatever it says", "--dnsRefreshRate": ownWay,
			"--trust-domain": "TRUST_DOMAIN", "--controlPlaneBootstrap": ownWay,
			"--log_output_level": "proxy.agentLogLevel", "--handoffDir": "where the slots meet", "--upgradeDrainDuration": "--parentShutdownDuration",
		})
	compare(t, "environment", names(slot.Env, func(e corev1.EnvVar) string { return e.Name }),
		"JWT_POLICY PILOT_CERT_PROVIDER CA_ADDR POD_NAME POD_NAMESPACE INSTANCE_IP SERVICE_ACCOUNT CANONICAL_SERVICE CANONICAL_REVISION PROXY_CONFIG ISTIO_META_POD_PORTS ISTIO_META_CLUSTER_ID ISTIO_META_POD_NAME ISTIO_META_CONFIG_NAMESPACE ISTIO_META_INTERCEPTION_MODE ISTIO_METAJSON_ANNOTATIONS ISTIO_META_WORKLOAD_NAME ISTIO_META_MESH_ID DNS_AGENT TERMINATION_DRAIN_DURATION_SECONDS",
		map[string]string{
			"CANONICAL_SERVICE": ofNode, "CANONICAL_REVISION": ofNode, "ISTIO_META_POD_NAME": ofNode, "ISTIO_META_CONFIG_NAMESPACE": ofNode, "ISTIO_METAJSON_ANNOTATIONS": ofNode,
			"POD_UID": newer, "HOST_IP": newer, "ISTIO_CPU_LIMIT": newer, "ISTIO_META_APP_CONTAINERS": newer, "ISTIO_META_NODE_NAME": newer, "ISTIO_META_OWNER": newer, "TRUST_DOMAIN": newer,
		})
	compare(t, "mounts", names(slot.VolumeMounts, func(m corev1.VolumeMount) string { return m.Name }),
		"istiod-ca-cert istio-data istio-envoy istio-podinfo asm-hotupgrade-data",
		map[string]string{"workload-socket": newer, "credential-socket": newer, "workload-certs": newer, "istio-ca-crl": newer, "istio-wasm-secrets": "ASM's controller pulls the images of chapter 5"})
	// -x is the manual's; of the ports, 15021 was there twice, and the preset has two more.
	if want := "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i * -x 172.23.0.1/32 -b * -d 15090,15021,15081,9191"; strings.Join(set.Spec.InitContainers[0].Args, " ") != want {
		t.Errorf("istio-init has %q, want %q", set.Spec.InitContainers[0].Args, want)
	}
}

// compare demands that what is there is the manual's, less and more what has a reason, and that each reason is needed.
func compare(t *testing.T, what string, got []string, manual string, reasons map[string]string) {
	t.Helper()
	differ := map[string]bool{}
	for _, name := range strings.Fields(manual) {
		if !slices.Contains(got, name) {
			differ[name] = true
		}
	}
	for _, name := range got {
		if !slices.Contains(strings.Fields(manual), name) {
			differ[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(differ)) {
		if reasons[name] == "" {
			t.Errorf("%s: %s differs from the manual, without a reason", what, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		if !differ[name] {
			t.Errorf("%s: %s does not differ from the manual", what, name)
		}
	}
}

func flags(args []string) (all []string) {
	for _, arg := range args {
		if name, _, _ := strings.Cut(arg, "="); strings.HasPrefix(name, "--") {
			all = append(all, name)
		}
	}
	return all
}

func names[T any](list []T, name func(T) string) (all []string) {
	for _, e := range list {
		all = append(all, name(e))
	}
	return all
}

// TestSidecarSet has the command say what it cannot do, and what a workload has to have.
func TestSidecarSet(t *testing.T) {
	profile := files(t, manualProfile)[0]
	const pod = `kind: Deployment
apiVersion: apps/v1
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {tier: web}}
  template:
    metadata: {labels: {tier: web}, annotations: {sidecar.istio.io/logLevel: debug}}
    spec: {containers: [{name: app, image: i, livenessProbe: {httpGet: {port: 80}}}, {name: istio-proxy, image: auto}]}
`
	for _, tt := range []struct {
		args, stdin string
		status      int
		out, notes  []string
	}{
		{args: "-n shop -f - --settings " + profile, stdin: pod,
			out: []string{"name: shop-web\n", "sidecarset-injected: \"true\"", "tier: web", "--proxyLogLevel=debug", "namespace: shop\n"},
			notes: []string{"no label sidecarset-injected=true", "no label security.istio.io/tlsMode=istio", "container app: a SidecarSet rewrites no probes",
				"a container istio-proxy of its own"}},
		{args: "-n shop -f - --api v1beta1 --settings " + profile, stdin: pod, out: []string{"apiVersion: apps.kruise.io/v1beta1", "specificNamespace:\n    namespace: shop"}},
		{args: "-n shop --workload web --settings " + profile, out: []string{"name: shop-web\n", "app: web", "fieldPath: metadata.labels['app']"}},
		{args: "-n shop --offline --settings " + profile, out: []string{"name: shop\n", "fieldPath: metadata.labels['app']"}},
		{args: "-n shop --offline", status: exitError, notes: []string{"hotUpgrade.emptyImage is empty"}},
		{args: "-n other -f - --settings " + profile, stdin: pod, status: exitError, notes: []string{"no such workload of namespace other"}},
		{args: "-n shop --workload db -f - --settings " + profile, stdin: pod, status: exitError, notes: []string{"no such workload"}},
		{args: "-n shop -f - --settings " + profile, stdin: "a: [", status: exitError, notes: []string{"-, document 1"}},
		{args: "", status: exitUsage, notes: []string{"flag -n"}},
		{args: "-n shop --api v1", status: exitUsage, notes: []string{`flag --api: "v1"`}},
		{args: "-n shop -o table", status: exitUsage, notes: []string{`flag -o: "table"`}},
		{args: "-n shop -f - --diff -", status: exitUsage, notes: []string{"flags -f and --diff"}},
		{args: "-n shop pod", status: exitUsage, notes: []string{"pod"}},
	} {
		status, out, notes := execute(tt.stdin, append([]string{"sidecarset"}, strings.Fields(tt.args)...)...)
		if status != tt.status || (status != 0) != (out == "") {
			t.Errorf("%s: %d\n%s%s", tt.args, status, out, notes)
		}
		for _, want := range tt.out {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", tt.args, want, out)
			}
		}
		for _, want := range tt.notes {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: no %q in\n%s", tt.args, want, notes)
			}
		}
	}
}

// TestSidecarSetDiff: an image is changed in place, anything else is not.
func TestSidecarSetDiff(t *testing.T) {
	_, there, _ := execute(manualDeployment, "sidecarset", "-n", "default", "--settings", files(t, manualProfile)[0], "-f", "-")
	file := files(t, there)[0]
	for change, want := range map[string]string{
		"":                                    "0 default-nginx-deployment: no difference\n",
		"asm-istio-proxy:1 asm-istio-proxy:2": "0 default-nginx-deployment: image only: in place\n",
		"concurrency:?2 concurrency:?3":       "1 default-nginx-deployment: field spec.containers[istio-proxy].args: needs new pods\ndefault-nginx-deployment: field spec.containers[istio-proxy].env[PROXY_CONFIG].value: needs new pods\n",
		"proxyv2:1.6.8 proxyv2:1.6.9":         "1 default-nginx-deployment: field spec.initContainers[istio-init].image: needs new pods\n",
		"asm-istio-proxy-empty:1 empty:2":     "1 default-nginx-deployment: field spec.containers[istio-proxy].upgradeStrategy.hotUpgradeEmptyImage: needs new pods\n",
	} {
		old, new, _ := strings.Cut(strings.ReplaceAll(change, "?", "\x00"), " ")
		profile := strings.Replace(manualProfile, strings.ReplaceAll(old, "\x00", " "), strings.ReplaceAll(new, "\x00", " "), 1)
		status, out, _ := execute(manualDeployment, "sidecarset", "-n", "default", "--settings", files(t, profile)[0], "-f", "-", "--diff", file)
		if got := string(rune('0'+status)) + " " + out; got != want {
			t.Errorf("%q: %q, want %q", change, got, want)
		}
	}
	if status, _, notes := execute(manualDeployment, "sidecarset", "-n", "shop", "--settings", files(t, manualProfile)[0], "-f", "-", "--diff", file); status != exitError || !strings.Contains(notes, "there is no SidecarSet shop-nginx-deployment in it") {
		t.Errorf("%d: %s", status, notes)
	}
	if status, _, notes := execute("", "sidecarset", "-n", "shop", "--offline", "--settings", files(t, manualProfile)[0], "--diff", files(t, manualDeployment)[0]); status != exitError || !strings.Contains(notes, "want a SidecarSet") {
		t.Errorf("%d: %s", status, notes)
	}
}

// TestSidecarSetOfACluster asks for all Deployments, or for one workload.
func TestSidecarSetOfACluster(t *testing.T) {
	template := `"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}}}`
	apps := "/apis/apps/v1/namespaces/shop/"
	kubeconfig := apiServer(t, map[string]string{
		"/api/v1/namespaces/shop": `{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}`,
		"/apis/understudy.mesh/v1alpha1/namespaces/understudy-system/sidecarprofiles/default": `{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile",
			"metadata": {"name": "default", "namespace": "understudy-system"}, "spec": {"proxy": {"image": "p:1"}, "hotUpgrade": {"emptyImage": "e:1"}}}`,
		apps + "deployments":                        `{"kind": "DeploymentList", "items": [{"metadata": {"name": "one"}, ` + template + `}, {"metadata": {"name": "two"}, ` + template + `}]}`,
		apps + "statefulsets/three":                 `{"kind": "StatefulSet", "apiVersion": "apps/v1", "metadata": {"name": "three"}, ` + template + `}`,
		"/apis/apps/v1/namespaces/none/deployments": `{"items": []}`,
	})
	for args, want := range map[string]string{
		"-n shop":                              "name: shop-one name: shop-two",
		"-n shop --workload statefulset/three": "name: shop-three",
		"-n shop --workload four":              "read Deployment shop/four: there is none of that name",
		"-n shop --workload job/five":          `kind "job": want one of cloneset, daemonset, deployment, statefulset`,
		"-n none":                              "there is no Deployment in it",
	} {
		_, out, notes := execute("", append([]string{"sidecarset", "--kubeconfig", kubeconfig}, strings.Fields(args)...)...)
		var found []string
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "  name: ") {
				found = append(found, strings.TrimSpace(line))
			}
		}
		if got := strings.Join(found, " "); got != want && !strings.Contains(notes, want) {
			t.Errorf("%s: %q, want %q\n%s", args, got, want, notes)
		}
		if strings.Contains(args, "shop") && out != "" && !strings.Contains(notes, "the injector's webhook injects these pods too") {
			t.Errorf("%s: nothing is said of the webhook: %s", args, notes)
		}
	}
}
