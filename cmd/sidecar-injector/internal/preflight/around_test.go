package preflight

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestCompareAround: what a pod would have otherwise besides the proxy's containers, and what the application would lack.
func TestCompareAround(t *testing.T) {
	const (
		istios = `"sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\",\"fetch\"],\"containers\":[\"istio-proxy\",\"audit\"],\"volumes\":[\"istio-token\",\"certs\"],\"imagePullSecrets\":[\"pull\"]}"`
		ours   = `"sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\",\"istio-proxy\"],\"containers\":null,\"volumes\":[\"istio-token\",\"data\"]}"`
		token  = `{"name": "istio-token", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}}]}}`
		app    = `{"name": "app", "volumeMounts": [{"name": "certs", "mountPath": "/certs"}, {"name": "own", "mountPath": "/own"}, {"name": "istio-token", "mountPath": "/t"}]}`
	)
	running := `{"metadata": {"annotations": {` + istios + `, "prometheus.io/port": "15020", "cni.projectcalico.org/podIP": "10.0.0.1", "istio.io/rev": "1-32"},
			"labels": {"app": "x", "security.istio.io/tlsMode": "istio", "pod-template-hash": "abc"}},
		"spec": {"initContainers": [{"name": "istio-init"}, {"name": "fetch"}], "containers": [` + app + `, {"name": "istio-proxy"}, {"name": "audit"}, {"name": "another"}],
			"volumes": [` + token + `, {"name": "certs", "emptyDir": {}}, {"name": "own", "emptyDir": {}}, {"name": "kube-api-access-x", "projected": {}}],
			"imagePullSecrets": [{"name": "pull"}, {"name": "account"}], "securityContext": {}, "dnsConfig": {"searches": ["global"]}}}`
	made := `{"metadata": {"annotations": {` + ours + `, "prometheus.io/port": "9090", "istio.io/rev": "understudy"}, "labels": {"app": "x", "security.istio.io/tlsMode": "istio"}},
		"spec": {"initContainers": [{"name": "istio-init"}, {"name": "istio-proxy"}], "containers": [` + app + `],
			"volumes": [` + strings.Replace(token, "43200", "600", 1) + `, {"name": "own", "emptyDir": {}}, {"name": "data", "emptyDir": {}}], "securityContext": {"fsGroup": 1337}}}`
	pod := new(corev1.Pod)
	if err := json.Unmarshal([]byte(running), pod); err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := r.compareAround(pod, []byte(made)); err != nil {
		t.Fatal(err)
	}
	blockers := []string{
		"Istio's templates add the container fetch, and ours would not",
		"Istio's templates add the container audit, and ours would not",
		"container app mounts the volume certs, which Istio's templates add, and ours would not",
	}
	differences := []string{
		`annotations.prometheus.io/port: "15020" -> "9090"`,
		`dnsConfig: {"searches":["global"]} -> none`,
		`imagePullSecrets: [{"name":"pull"}] -> none`,
		`securityContext: none -> {"fsGroup":1337}`,
		`volumes[certs]: {"emptyDir":{},"name":"certs"} -> none`,
		`volumes[data]: none -> {"emptyDir":{},"name":"data"}`,
		`volumes[istio-token].projected.sources: [{"serviceAccountToken":{"audience":"istio-ca","expirationSeconds":43200,"path":"istio-token"}}] -> [{"serviceAccountToken"…`,
	}
	for i, d := range r.Differences {
		if before, after, _ := strings.Cut(d, " -> "); len(after) > 30 {
			r.Differences[i] = before + " -> " + after[:23] + "…"
		}
	}
	if !slices.Equal(r.Blockers, blockers) || !slices.Equal(r.Differences, differences) {
		t.Errorf("blockers\n%s\ndifferences\n%s", strings.Join(r.Blockers, "\n"), strings.Join(r.Differences, "\n"))
	}
	// What the API server fills in is no difference, in a list without names either.
	const labels = `{"metadata": {"annotations": {` + ours + `}}, "spec": {"volumes": [{"name": "data", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}`
	filled := strings.Replace(labels, `"fieldPath"`, `"apiVersion": "v1", "fieldPath"`, 1)
	for made, differs := range map[string]bool{labels: false, strings.Replace(labels, "metadata.labels", "metadata.name", 1): true} {
		r, pod := Report{}, new(corev1.Pod)
		if err := json.Unmarshal([]byte(filled), pod); err != nil {
			t.Fatal(err)
		}
		if err := r.compareAround(pod, []byte(made)); err != nil || len(r.Blockers) > 0 || len(r.Differences) > 0 != differs {
			t.Errorf("%s: %v, %+v", made, err, r)
		}
	}
	r = Report{}
	if err := r.compareAround(pod, []byte(running)); err != nil || len(r.Blockers)+len(r.Differences) > 0 {
		t.Errorf("with itself: %v, %+v", err, r)
	}
	if err := r.compareAround(pod, []byte(`{"spec": {"volumes": {}}}`)); err == nil {
		t.Error("no pod, and no error")
	}
}
