package inject

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

const (
	plainMesh  = "proxy: {image: understudy/proxy:v1}"
	otherMesh  = "{preset: asm, proxy: {image: understudy/proxy:v0, statusPort: 15099, native: Always, env: {A: b}, imagePullSecrets: [s]}, hotUpgrade: {emptyImage: e}, controlPlane: {mode: files, configMap: c}, wasm: {pullSecrets: [w]}, injection: {injectedAnnotations: {x: y}}}"
	probedPod  = `{"metadata":{"name":"a","annotations":{"prometheus.io/port":"9090"}},"spec":{"containers":[{"name":"a","image":"i","ports":[{"name":"http","containerPort":8080}],"livenessProbe":{"httpGet":{"path":"/l","port":"http","scheme":"HTTPS"}},"readinessProbe":{"tcpSocket":{"port":8080}},"startupProbe":{"grpc":{"port":9000}}},{"name":"istio-proxy","image":"auto","env":[{"name":"MINE","value":"1"}]}]}}`
	serverPath = "/var/run/secrets/kubernetes.io/serviceaccount"
)

func inject(t testing.TB, pod []byte, env Environment, layers ...profile.Layer) []byte {
	t.Helper()
	ops, _, err := patchOf(pod, settingsOf(t, pod, layers...), env)
	if err != nil {
		t.Fatalf("%v: %s", err, pod)
	}
	return apply(t, pod, ops)
}

func object(t testing.TB, text []byte) (o map[string]any) {
	t.Helper()
	if err := json.Unmarshal(text, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestOtherSettings gives each pod other settings first, as `kubectl get | kubectl replace --force` does after a change: nothing of them may be left.
func TestOtherSettings(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txtar")
	other, plain := layerOf(t, profile.SourceMesh, otherMesh), layerOf(t, profile.SourceMesh, plainMesh)
	env := Environment{Namespace: Namespace{Name: "shop"}}
	tried := 0
	for _, file := range files {
		pod, err := yaml.YAMLToJSON(archived(t, file)["pod.yaml"])
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := patchOf(pod, settingsOf(t, pod, plain), env); err != nil {
			continue
		}
		tried++
		first := inject(t, pod, env, other)
		want, got := object(t, inject(t, pod, env, plain)), object(t, inject(t, serverDefaults(t, first), env, plain))
		if file == "testdata/prometheus.txtar" { // whose odd spelling is not kept
			continue
		}
		if d := diff.Diff("once", asYAML(t, withDefaults(t, want)), "after", asYAML(t, withDefaults(t, got))); d != nil {
			t.Errorf("%s: what is left of other settings:\n%s", file, d)
		}
	}
	if tried < 20 {
		t.Errorf("only %d pods", tried)
	}
}

// TestOtherImage: a pod that has the settings but not the image is built anew.
func TestOtherImage(t *testing.T) {
	env := Environment{Namespace: Namespace{Name: "shop"}}
	v1, v2 := layerOf(t, profile.SourceMesh, plainMesh), layerOf(t, profile.SourceMesh, strings.Replace(plainMesh, ":v1", ":v2", 1))
	want := object(t, inject(t, []byte(probedPod), env, v2))
	got := object(t, inject(t, inject(t, []byte(probedPod), env, v1), env, v2))
	if d := diff.Diff("once", asYAML(t, want), "after", asYAML(t, got)); d != nil {
		t.Errorf("what is left of another image:\n%s", d)
	}
}

func asYAML(t *testing.T, o map[string]any) []byte {
	t.Helper()
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// serverDefaults does to an injected pod what the API server does: defaults, the service account's mount, a LimitRange.
func serverDefaults(t *testing.T, pod []byte) []byte {
	t.Helper()
	text, err := json.Marshal(withDefaults(t, object(t, pod)))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func withDefaults(t *testing.T, pod map[string]any) map[string]any {
	t.Helper()
	spec := pod["spec"].(map[string]any)
	spec["dnsPolicy"], spec["serviceAccountName"] = "ClusterFirst", "default"
	maps.DeleteFunc(spec, func(_ string, v any) bool { return v == nil })
	volumes, _ := spec["volumes"].([]any)
	if !slices.ContainsFunc(volumes, func(v any) bool { return at(v, "name") == "kube-api-access-x" }) {
		volumes = append(volumes, map[string]any{"name": "kube-api-access-x", "projected": map[string]any{}})
	}
	slices.SortStableFunc(volumes, func(a, b any) int { return strings.Compare(at(a, "name").(string), at(b, "name").(string)) })
	spec["volumes"] = volumes
	for _, list := range []string{initContainers, containers} {
		all, _ := spec[list].([]any)
		for _, c := range all {
			c := c.(map[string]any)
			c["terminationMessagePath"], c["terminationMessagePolicy"] = "/dev/termination-log", "File"
			mounts, _ := c["volumeMounts"].([]any)
			if !slices.ContainsFunc(mounts, func(m any) bool { return at(m, "mountPath") == serverPath }) {
				mounts = append(mounts, map[string]any{"name": "kube-api-access-x", "mountPath": serverPath})
			}
			c["volumeMounts"] = mounts
			for _, kind := range []string{"livenessProbe", "readinessProbe", "startupProbe"} {
				probe, ok := c[kind].(map[string]any)
				if !ok {
					continue
				}
				probe["successThreshold"] = 1.0
				if probe["timeoutSeconds"] == nil {
					probe["timeoutSeconds"] = 1.0
				}
				if get, ok := probe["httpGet"].(map[string]any); ok && get["scheme"] == nil {
					get["scheme"] = "HTTP"
				}
			}
		}
		if all != nil {
			spec[list] = all
		}
	}
	return pod
}

// TestServerDefaults asks again after the API server's plugins, as it does itself when another webhook has changed the pod.
func TestServerDefaults(t *testing.T) {
	for _, mesh := range []string{plainMesh, otherMesh} {
		layer, env := layerOf(t, profile.SourceMesh, mesh), Environment{Namespace: Namespace{Name: "shop"}}
		pod := serverDefaults(t, inject(t, []byte(probedPod), env, layer))
		if ops, _, err := patchOf(pod, settingsOf(t, pod, layer), env); ops != nil || err != nil {
			t.Errorf("%s: %s, %v", mesh, ops, err)
		}
	}
}

// TestOtherWebhook has another webhook add containers, and change ours: the new ones are taken in, and the changes stay.
func TestOtherWebhook(t *testing.T) {
	layer := layerOf(t, profile.SourceMesh, "proxy: {image: understudy/proxy:v1, holdApplicationUntilProxyStarts: true}")
	env := Environment{Namespace: Namespace{Name: "shop"}}
	pod := object(t, inject(t, []byte(probedPod), env, layer))
	spec := pod["spec"].(map[string]any)
	ours := spec[containers].([]any)[0].(map[string]any)
	if ours["name"] != "istio-proxy" {
		t.Fatalf("the first container is %v", ours["name"])
	}
	ours["image"] = "changed"
	for _, e := range ours["env"].([]any) {
		if at(e, "name") == contract.ProbersVariable {
			e.(map[string]any)["value"] = strings.Replace(at(e, "value").(string), "{", `{"/app-health/z/livez":{"grpc":{"port":1}},`, 1)
		}
	}
	delete(spec, "imagePullSecrets")
	spec[containers] = append([]any{object(t, []byte(`{"name":"b","image":"i","ports":[{"containerPort":7070}],"livenessProbe":{"httpGet":{"path":"/b","port":7070}}}`))}, spec[containers].([]any)...)
	spec[initContainers] = append(spec[initContainers].([]any), object(t, []byte(`{"name":"last","image":"i"}`)))
	pod["metadata"].(map[string]any)["annotations"].(map[string]any)["prometheus.io/port"] = "7070"
	text, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	again := object(t, inject(t, text, env, layer))
	spec = again["spec"].(map[string]any)
	var order []string
	for _, list := range []string{initContainers, containers} {
		for _, c := range spec[list].([]any) {
			order = append(order, c.(map[string]any)["name"].(string))
		}
	}
	if got := strings.Join(order, " "); got != "last istio-init istio-proxy b a" {
		t.Errorf("order %s", got)
	}
	proxy := spec[containers].([]any)[0].(map[string]any)
	if proxy["image"] != "changed" {
		t.Errorf("the image is %v again", proxy["image"])
	}
	values := map[string]string{}
	for _, e := range proxy["env"].([]any) {
		values[at(e, "name").(string)], _ = at(e, "value").(string)
	}
	for name, want := range map[string]string{
		contract.AppsVariable:       "a,b",
		contract.PodPortsVariable:   `[{"name":"http","containerPort":8080},{"containerPort":7070}]`,
		contract.ProbersVariable:    `{"/app-health/a/livez":{"httpGet":{"path":"/l","port":8080,"scheme":"HTTPS"}},"/app-health/a/readyz":{"tcpSocket":{"port":8080}},"/app-health/a/startupz":{"grpc":{"port":9000}},"/app-health/b/livez":{"httpGet":{"path":"/b","port":7070}},"/app-health/z/livez":{"grpc":{"port":1}}}`,
		contract.PrometheusVariable: `{"scrape":"true","path":"/stats/prometheus","port":"7070"}`,
		"MINE":                      "1",
	} {
		if values[name] != want {
			t.Errorf("%s is %s\nwant %s", name, values[name], want)
		}
	}
	text, _ = json.Marshal(again)
	if ops, _, err := patchOf(text, settingsOf(t, text, layer), env); ops != nil || err != nil {
		t.Errorf("a third time: %s, %v", ops, err)
	}
}

// TestForeignStatus refuses what another injector has written, or nobody.
func TestForeignStatus(t *testing.T) {
	for _, status := range []string{`{"revision":"default"}`, `{`, `[]`, `null`} {
		pod, _ := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]any{AnnotationStatus: status}}, "spec": map[string]any{"containers": []any{map[string]any{"name": "a"}}}})
		if ops, _, err := patchOf(pod, profile.Resolve(layerOf(t, profile.SourceMesh, plainMesh)), Environment{}); err == nil || !strings.Contains(err.Error(), AnnotationStatus) {
			t.Errorf("%s: %s, %v", status, ops, err)
		}
	}
}
