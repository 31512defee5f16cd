package pods

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// restartTemplate is a pod of each of restartKinds, whose label is its workload's name. It ends at once.
const restartTemplate = `
    metadata: {labels: {app: NAME}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: sleep, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`

// restartKinds are workloads with one pod each, and what becomes of them.
var restartKinds = []struct{ kind, name, spec, says string }{
	{"Deployment", "web", "", ": restarted, 1 pod"},
	{"StatefulSet", "store", "  serviceName: store\n", ": restarted, 1 pod"},
	{"StatefulSet", "store-by-hand", "  serviceName: store\n  updateStrategy: {type: OnDelete}\n", ": restarted, 1 pod"},
	{"DaemonSet", "node", "", ": restarted, 1 pod"},
	{"DaemonSet", "node-by-hand", "  updateStrategy: {type: OnDelete}\n", ": restarted, 1 pod"},
	{"ReplicaSet", "alone", "", ": restarted, 1 pod"},
	{"ReplicationController", "controlled", "", ": restarted, 1 pod"},
	{"Job", "job", "", ": left as it is: a Job's pods are not replaced"},
	{"Deployment", "paused", "", ": left as it is: it is paused: spec.paused"},
	{"Pod", "sleep", "", ": left as it is: nobody makes it anew"},
}

// restartWorkloads makes those of restartKinds in a namespace that is injected and has the pod sleep; then another setting, and the
// command: every pod is made anew whose workload can do that, once, and the others are named.
func restartWorkloads(t *testing.T, ns *cluster.Namespace) {
	t.Helper()
	for _, k := range restartKinds {
		apiVersion, selector, template := "apps/v1", "  selector: {matchLabels: {app: NAME}}\n", restartTemplate
		switch k.kind {
		case "Pod":
			continue
		case "ReplicationController":
			apiVersion, selector = "v1", "  selector: {app: NAME}\n"
		case "Job":
			apiVersion, selector, template = "batch/v1", "", restartTemplate+"      restartPolicy: Never\n"
		}
		ns.Apply(t, strings.ReplaceAll("apiVersion: "+apiVersion+"\nkind: "+k.kind+"\nmetadata: {name: NAME}\nspec:\n"+selector+k.spec+"  template:"+template, "NAME", k.name))
	}
	for _, k := range restartKinds {
		if k.kind != "Pod" {
			lab.Eventually(t, podLimit, k.name+" has a pod that is ready", func() error { return hasReady(t, ns, k.name) })
		}
	}
	ns.Kubectl(t, "patch", "deployment", "paused", "--patch", `{"spec": {"paused": true}}`)
	before := uids(t, ns)
	dir := t.TempDir()
	linkInjector(t, dir)
	run := func(flags string) string {
		out, err := shell(dir, "sidecar-injector restart -n "+ns.Name+flags)
		if want := 1; flags == "" && cluster.ExitStatus(err) != want {
			t.Errorf("restart: exit status %d, want %d: %v", cluster.ExitStatus(err), want, err)
		}
		return out
	}
	if out := run(" --dry-run"); !strings.Contains(out, fmt.Sprintf("%d workloads: nothing to do\n", len(restartKinds))) {
		t.Errorf("before any change:\n%s", out)
	}
	ns.Kubectl(t, "patch", "sidecarprofile", "default", "--type=merge", "--patch", `{"spec": {"proxy": {"logLevel": "info"}}}`)
	ns.Wait(t, podLimit, "jsonpath={.status.observedGeneration}=2", "sidecarprofile/default")
	out := run("")
	t.Logf("restart:\n%s", out)
	after := uids(t, ns)
	for _, k := range restartKinds {
		if !strings.Contains(out, k.kind+"/"+k.name+k.says) || !strings.Contains(out, "(1 of 1 pod: istio-proxy.args)") {
			t.Errorf("%s %s: no %q in\n%s", k.kind, k.name, k.says, out)
		}
		if restarted := strings.Contains(k.says, "restarted"); restarted == slices.Equal(before[k.name], after[k.name]) || len(after[k.name]) != 1 {
			t.Errorf("%s %s: pods %q, before %q", k.kind, k.name, after[k.name], before[k.name])
		}
	}
	if out := run(" --dry-run"); !strings.Contains(out, "7 workloads: nothing to do\n") {
		t.Errorf("afterwards:\n%s", out)
	}
	out, err := shell(dir, "sidecar-injector versions -n "+ns.Name+" -o json")
	for _, part := range []string{`"role": "serving"`, `"agent": "`, `"envoy": "1.`, `"digest": "sha256:`} {
		if n := strings.Count(out, part); n != len(restartKinds) || err != nil {
			t.Errorf("versions: %d times %s, want %d: %v\n%s", n, part, len(restartKinds), err, out)
		}
	}
}

// TestRestartOfABadImage: two workloads and settings with an image that cannot be pulled. The first one stops, with its old pod serving, and the other
// is not begun. With the image mended the command goes on; an interrupt lets it end what is under way, and begin nothing.
func TestRestartOfABadImage(t *testing.T) {
	removeInjector(t)
	if _, err := shell(lab.RepoRoot(t), blocksOf(t, "docs/inject.md", "Install", "sh")[0]); err != nil {
		t.Fatal(err)
	}
	ns := shared.Namespace(t, "restart")
	ns.Kubectl(t, "label", "namespace", ns.Name, "istio-injection=enabled")
	ns.Apply(t, injectedMesh)
	ns.Wait(t, podLimit, "condition=InForce", "sidecarprofile/default")
	lab.Eventually(t, podLimit, "the API server reaches the injector's Service", func() error {
		_, err := ns.Try("run", "early", "--image=curlimages/curl", "--dry-run=server")
		return err
	})
	for _, name := range []string{"one", "two"} {
		ns.Apply(t, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: "+name+"}\nspec:\n  strategy: {rollingUpdate: {maxUnavailable: 0}}\n  selector: {matchLabels: {app: "+name+"}}\n  template:"+
			strings.ReplaceAll(restartTemplate, "NAME", name))
	}
	ns.Wait(t, podLimit, "condition=Available", "deployment/one", "deployment/two")
	dir := t.TempDir()
	linkInjector(t, dir)
	settings := func(generation int, spec string) {
		ns.Kubectl(t, "patch", "sidecarprofile", "default", "--type=merge", "--patch", spec)
		ns.Wait(t, podLimit, fmt.Sprintf("jsonpath={.status.observedGeneration}=%d", generation), "sidecarprofile/default")
	}
	run := func(prefix string, status int, want ...string) {
		t.Helper()
		out, err := shell(dir, prefix+"sidecar-injector restart -n "+ns.Name+" --workloads 1 --timeout 20s 2>&1")
		for _, text := range want {
			if cluster.ExitStatus(err) != status || !strings.Contains(out, text) {
				t.Errorf("restart: %v, no %q in\n%s", err, text, out)
			}
		}
	}
	before := uids(t, ns)
	settings(2, `{"spec": {"proxy": {"image": "understudy/proxy:none"}}}`)
	run("", 1, "Deployment/one: 0 of 1 pods are new, and nothing has gone on for 20s; pod one-", "ImagePullBackOff", "not begun, since new pods do not come: Deployment/two; run it again to go on")
	if after := uids(t, ns); !slices.Contains(after["one"], before["one"][0]) || !slices.Equal(after["two"], before["two"]) {
		t.Errorf("pods %q, before %q", after, before)
	}
	if err := hasReady(t, ns, "one"); err != nil {
		t.Errorf("the old pod of one: %v", err)
	}
	settings(3, `{"spec": {"proxy": {"image": null, "logLevel": "info"}}}`)
	run("timeout --signal=INT 2 ", 124, "nothing new is begun; interrupt again", "Deployment/one: restarted, ", "not begun, interrupted: Deployment/two; run it again to go on")
	if after := uids(t, ns); slices.Contains(after["one"], before["one"][0]) || !slices.Equal(after["two"], before["two"]) {
		t.Errorf("pods %q, before %q", after, before)
	}
	run("", 0, "Deployment/two: restarted, 1 pod", "1 workload: nothing to do")
}

// uids are those of a namespace's pods that are not ending, by the label app.
func uids(t *testing.T, ns *cluster.Namespace) map[string][]string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name, UID         string
				DeletionTimestamp *string
				Labels            map[string]string
			}
		}
	}
	ns.Get(t, &list, "pods")
	found := map[string][]string{}
	for _, p := range list.Items {
		name := p.Metadata.Labels["app"]
		if name == "" {
			name = p.Metadata.Name
		}
		if p.Metadata.DeletionTimestamp == nil {
			found[name] = append(found[name], p.Metadata.UID)
		}
	}
	return found
}

func hasReady(t *testing.T, ns *cluster.Namespace, name string) error {
	t.Helper()
	for _, pod := range ns.Pods(t, "app="+name) {
		if pod.Ready && !pod.Deleting {
			return nil
		}
	}
	return fmt.Errorf("none is")
}
