package main

import (
	"fmt"
	"strings"
	"testing"
)

// preflightServer is a cluster that Istio injects: one workload for each thing that may be said of one.
func preflightServer(t *testing.T, injectorConfig string) string {
	labelled := func(name, labels string) string {
		return fmt.Sprintf(`{"metadata": {"name": %q, "labels": {%s}}}`, name, labels)
	}
	var deployments, sets, pods []string
	workload := func(namespace, name, labels, annotations, istios, containers string) {
		template := fmt.Sprintf(`{"metadata": {"labels": {"app": %q%s}, "annotations": {%s}}, "spec": {"containers": [{"name": "app", "image": "a"}]}}`, name, labels, annotations)
		deployments = append(deployments, fmt.Sprintf(`{"metadata": {"name": %q, "namespace": %q, "uid": "d-%[1]s"}, "spec": {"selector": {"matchLabels": {"app": %[1]q}}, "template": %[3]s}}`, name, namespace, template))
		sets = append(sets, fmt.Sprintf(`{"metadata": {"name": %q, "namespace": %q, "uid": "r-%[1]s", "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": %[1]q, "uid": "d-%[1]s", "controller": true}]}}`, name, namespace))
		pods = append(pods, fmt.Sprintf(`{"metadata": {"name": "%s-1", "namespace": %q, "annotations": {%[3]s}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": %[1]q, "uid": "r-%[1]s", "controller": true}]},
			"spec": {"initContainers": [%[4]s], "containers": [{"name": "app"}]}, "status": {"phase": "Running"}}`, name, namespace, istios, containers))
	}
	const status = `"sidecar.istio.io/status": "{\"revision\":\"default\",\"containers\":[\"istio-proxy\"]}"`
	init := func(ports string) string {
		return `{"name": "istio-init", "image": "istio", "args": ["istio-iptables", "-p", "15001", "-z", "15006", "-u", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "` + ports + `", "--log_output_level=default:info"],
			"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
			"securityContext": {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": false, "privileged": false, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": false, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]}}}`
	}
	workload("shop", "other-ports", "", "", status, init("15090,15020,15021,9999"))
	workload("shop", "gateway", "", `"inject.istio.io/templates": "gateway"`, status, "")
	workload("shop", "wrong", "", `"sidecar.istio.io/proxyCPU": "much"`, status, "")
	workload("shop", "pinned", `, "istio.io/rev": "1-32"`, "", status, "")
	workload("shop", "overridden", "", `"sidecar.istio.io/bootstrapOverride": "mine"`, status, "")
	workload("shop", "old", "", "", "", "")
	workload("plain", "plain", "", "", "", "")
	workload("plain", "itself", `, "sidecar.istio.io/inject": "true"`, "", status, "")
	list := func(items []string) string { return `{"items": [` + strings.Join(items, ",") + `]}` }
	return apiServer(t, map[string]string{
		"/api/v1/pods": list(pods), "/apis/apps/v1/deployments": list(deployments), "/apis/apps/v1/replicasets": list(sets),
		"/api/v1/nodes":           `{"items": [{"status": {"nodeInfo": {"kubeletVersion": "v1.32.0"}}}]}`,
		"/api/v1/namespaces/shop": labelled("shop", `"istio-injection": "enabled"`), "/api/v1/namespaces/plain": labelled("plain", ""),
		"/api/v1/namespaces/istio-system/configmaps/istio":                  `{"kind": "ConfigMap", "metadata": {"name": "istio"}, "data": {"mesh": "defaultConfig: {}"}}`,
		"/api/v1/namespaces/istio-system/configmaps/istio-sidecar-injector": `{"kind": "ConfigMap", "metadata": {"name": "istio-sidecar-injector"}, "data": {"config": "` + injectorConfig + `", "values": "{}"}}`,
	})
}

func TestPreflight(t *testing.T) {
	status, stdout, stderr := execute("", "preflight", "-A", "--kubeconfig", preflightServer(t, "policy: enabled"))
	if status != 1 || !strings.Contains(stderr, "3 blockers") {
		t.Errorf("%d: %s", status, stderr)
	}
	for _, want := range []string{
		"Deployment shop/gateway: blocked\n  blocker: Istio injects it, and ours would not: other-template\n  warning: annotation inject.istio.io/templates: \"gateway\"",
		"Deployment shop/wrong: blocked\n  blocker: annotation sidecar.istio.io/proxyCPU: \"much\": ",
		"Deployment shop/pinned: blocked\n  blocker: Istio injects it, and ours would not: other-revision: its template has the label istio.io/rev: take it out\n",
		"  warning: annotation sidecar.istio.io/bootstrapOverride: \"mine\" has no effect",
		"Deployment shop/old: differs\n  difference: no pod of it is injected, and new ones would be: policy-on\n",
		"  difference: istio-init.args -d: \"15020,15021,15090,9999\" -> \"15020,15021,15090\"\n",
		"Deployment plain/itself: differs\n",
		"0 as they are, 4 with differences, 3 blocked\n",
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	for _, not := range []string{"plain/plain", "seccompProfile", "istio-init.image", "--log_output_level"} {
		if strings.Contains(stdout, not) {
			t.Errorf("%q in\n%s", not, stdout)
		}
	}
}

// TestPreflightSettings: what import cannot carry is a blocker, unless the user's own settings are given.
func TestPreflightSettings(t *testing.T) {
	kubeconfig := preflightServer(t, "templates: {mine: x}")
	status, stdout, stderr := execute("", "preflight", "-A", "--kubeconfig", kubeconfig)
	if status != 1 || !strings.Contains(stderr, "4 blockers") || !strings.Contains(stdout, "settings\n  blocker: not carried: ConfigMap istio-sidecar-injector, config: templates: \"mine\"") {
		t.Errorf("%d: %s%s", status, stdout, stderr)
	}
	own := files(t, `{apiVersion: understudy.mesh/v1alpha1, kind: SidecarProfile, metadata: {name: default, namespace: understudy-system}, spec: {capture: {excludeInboundPorts: [9999]}}}`)[0]
	status, stdout, stderr = execute("", "preflight", "-A", "--settings", own, "--kubeconfig", kubeconfig)
	if status != 1 || !strings.Contains(stderr, "3 blockers") || strings.Contains(stdout, "istio-init.args") {
		t.Errorf("%d: %s%s", status, stdout, stderr)
	}
	for args, want := range map[string]string{"": "flag -n or -A", "-A --settings x --revision y": "give one of them", "-A --kubelet-version new": "flag --kubelet-version"} {
		if status, _, stderr := execute("", append([]string{"preflight"}, strings.Fields(args)...)...); status != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%s: %d: %s", args, status, stderr)
		}
	}
	if status, _, stderr := execute("", "preflight", "-A", "--kubeconfig", versionsServer(t)); status != 1 || !strings.Contains(stderr, "where Istio is, say --root-namespace and --revision") {
		t.Errorf("%d: %s", status, stderr)
	}
}
