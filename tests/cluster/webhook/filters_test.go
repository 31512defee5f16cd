package webhook

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// envoyFilterDefinition is Istio's, as far as the API server goes by it.
const envoyFilterDefinition = `{"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "envoyfilters.networking.istio.io"},
"spec": {"group": "networking.istio.io", "names": {"kind": "EnvoyFilter", "listKind": "EnvoyFilterList", "plural": "envoyfilters", "singular": "envoyfilter"}, "scope": "Namespaced",
"versions": [{"name": "v1alpha3", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}}`

// deployment is the ASM manual's document, of an image.
func deployment(name, image string) string {
	return fmt.Sprintf(`{"apiVersion": "istio.alibabacloud.com/v1beta1", "kind": "ASMFilterDeployment", "metadata": {"name": %q}, "spec": {
"workload": {"kind": "Deployment", "labels": {"app": "details", "version": "v1"}},
"filter": {"patchContext": "SIDECAR_INBOUND", "parameters": "{\"name\":\"hello\", \"value\": \"hello details\"}", "image": %q, "rootID": "my_root_id", "id": "details-v1-wasmfiltersample.default"}}}`, name, image)
}

// envoyFilter is one as the API server has it.
type envoyFilter struct {
	Metadata metav1.ObjectMeta
	Spec     map[string]any
}

func (w *world) envoyFilter(namespace, name string) (f envoyFilter, err error) {
	text, err := w.TryKubectl("", "get", "envoyfilter", name, "-n", namespace, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &f)
	}
	return f, err
}

// filterIs waits until an EnvoyFilter has a text in its spec; "": until there is none.
func (w *world) filterIs(t *testing.T, namespace, name, text string) {
	t.Helper()
	lab.Eventually(t, limit, fmt.Sprintf("the EnvoyFilter %s has %q", name, text), func() error {
		f, err := w.envoyFilter(namespace, name)
		if text == "" {
			if err == nil {
				return fmt.Errorf("it is there: %+v", f)
			}
			if !strings.Contains(err.Error(), "NotFound") {
				return err
			}
			return nil
		}
		if err != nil {
			return err
		}
		if spec, _ := json.Marshal(f.Spec); !strings.Contains(string(spec), text) {
			return fmt.Errorf("%s", spec)
		}
		return nil
	})
}

// documentSays waits for a condition of a document.
func (w *world) documentSays(t *testing.T, namespace, name, kind, status, message string) {
	t.Helper()
	lab.Eventually(t, limit, fmt.Sprintf("%s of %s is %s", kind, name, status), func() error {
		text, err := w.TryKubectl("", "get", "asmfilterdeployment", name, "-n", namespace, "-o", "json")
		if err != nil {
			return err
		}
		var d struct {
			Metadata metav1.ObjectMeta
			Status   struct {
				ObservedGeneration int64
				Conditions         []metav1.Condition
			}
		}
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			return err
		}
		for _, c := range d.Status.Conditions {
			if c.Type == kind && string(c.Status) == status && strings.Contains(c.Message, message) && c.ObservedGeneration == d.Metadata.Generation && d.Status.ObservedGeneration == d.Metadata.Generation {
				return nil
			}
		}
		return fmt.Errorf("%+v", d.Status)
	})
}

// TestWebhookFilters: an ASMFilterDeployment has its EnvoyFilter, as its manifests' rights allow and no more, whatever becomes of
// replicas, of the API server and of the EnvoyFilter; one that somebody else has made is left alone, and a bad document changes nothing.
func TestWebhookFilters(t *testing.T) {
	w := newWorld(t)
	manifests, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "deploy/asm-filters.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	w.Kubectl(t, envoyFilterDefinition+"\n---\n"+string(manifests), "apply", "-f", "-")
	w.kubeconfig = w.AccountKubeconfig(t, own, "sidecar-injector-filters")
	lab.Eventually(t, limit, "the kinds are there", func() error {
		_, err := w.TryKubectl("", "get", "asmfilterdeployments,envoyfilters", "-A")
		return err
	})
	program, namespace := buildInjector(t), w.namespace(t)
	start := func(identity string) *injector {
		t.Setenv("POD_NAME", identity)
		return w.start(t, program, freeport.Get(t), "--filters")
	}
	first := start("first")
	apply := func(text string) { t.Helper(); w.Kubectl(t, text, "apply", "-n", namespace, "-f", "-") }
	const name = "details-v1-wasmfiltersample"
	apply(deployment(name, "registry.example.com/asm-test:v0.1"))
	w.filterIs(t, namespace, name, "oci://registry.example.com/asm-test:v0.1")
	w.documentSays(t, namespace, name, "Accepted", "True", "")
	w.documentSays(t, namespace, name, "Applied", "True", name)

	// It is what the agent says of the document.
	f, err := w.envoyFilter(namespace, name)
	if err != nil {
		t.Fatal(err)
	}
	document := filepath.Join(t.TempDir(), "document.json")
	if err := os.WriteFile(document, []byte(deployment(name, "registry.example.com/asm-test:v0.1")), 0o644); err != nil {
		t.Fatal(err)
	}
	explain := exec.Command("go", "run", "-trimpath", "-tags", "vtprotobuf,grpcnotrace", "./cmd/pilot-agent", "wasm", "explain", "-f", document)
	explain.Dir, explain.Env = lab.RepoRoot(t), append(os.Environ(), "POD_NAMESPACE="+namespace)
	said, err := explain.Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := w.TryKubectl(string(said), "create", "--dry-run=client", "-o", "json", "-f", "-")
	var want envoyFilter
	if err != nil || json.Unmarshal([]byte(text), &want) != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if diff := cmp.Diff(want.Spec, f.Spec); diff != "" {
		t.Error(diff)
	}
	if owner := f.Metadata.OwnerReferences; len(owner) != 1 || owner[0].Kind != "ASMFilterDeployment" || owner[0].Name != name || f.Metadata.Labels["understudy.mesh/made-of"] != "ASMFilterDeployment" {
		t.Errorf("%+v", f.Metadata)
	}

	// What is changed or deleted by somebody else is mended; what is changed in the document follows.
	w.Kubectl(t, "", "patch", "envoyfilter", name, "-n", namespace, "--type=merge", "-p", `{"spec": {"workloadSelector": {"labels": {"app": "other"}}}}`)
	w.filterIs(t, namespace, name, `"app":"details"`)
	w.Kubectl(t, "", "delete", "envoyfilter", name, "-n", namespace)
	w.filterIs(t, namespace, name, `"app":"details"`)
	apply(deployment(name, "registry.example.com/asm-test:v0.2"))
	w.filterIs(t, namespace, name, "asm-test:v0.2")
	w.Kubectl(t, "", "annotate", "asmfilterdeployment", name, "-n", namespace, "understudy.mesh/fail-strategy=FAIL_OPEN")
	w.filterIs(t, namespace, name, "wasm-default-allow")

	// A bad state changes nothing. What the definition refuses never comes so far.
	apply(deployment(name, "https://registry.example.com/a"))
	w.documentSays(t, namespace, name, "Accepted", "False", "spec.filter.image")
	w.documentSays(t, namespace, name, "Applied", "True", "last good state stays")
	w.filterIs(t, namespace, name, "asm-test:v0.2")
	if _, err := w.TryKubectl(strings.Replace(deployment("typed", "a"), `"labels": {"app": "details", "version": "v1"}`, `"labels": {}`, 1), "apply", "-n", namespace, "-f", "-"); err == nil {
		t.Error("a document without labels is taken")
	}
	apply(deployment("never-good", "https://registry.example.com/a"))
	w.documentSays(t, namespace, "never-good", "Applied", "False", "no good state")
	w.filterIs(t, namespace, "never-good", "")

	// An EnvoyFilter of somebody else's is left alone, until it is gone.
	const theirs = `{"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter", "metadata": {"name": "taken"}, "spec": {"priority": 7}}`
	apply(theirs)
	apply(deployment("taken", "registry.example.com/a:v1"))
	w.documentSays(t, namespace, "taken", "Applied", "False", "already")
	w.filterIs(t, namespace, "taken", `"priority":7`)
	w.Kubectl(t, "", "delete", "envoyfilter", "taken", "-n", namespace)
	w.filterIs(t, namespace, "taken", "registry.example.com/a:v1")

	// Of two replicas one writes; when that one is gone, the other does.
	second := start("second")
	if err := first.stop(syscall.SIGKILL); err == nil {
		t.Error("the first replica has ended by itself")
	}
	apply(deployment(name, "registry.example.com/asm-test:v0.3"))
	w.filterIs(t, namespace, name, "asm-test:v0.3")
	w.Down()
	w.Up(t)
	apply(deployment(name, "registry.example.com/asm-test:v0.4"))
	w.filterIs(t, namespace, name, "asm-test:v0.4")
	if err := second.stop(syscall.SIGTERM); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}

	// What is deleted while nobody is there is cleared up afterwards, although this API server has no garbage collector.
	w.Kubectl(t, "", "delete", "asmfilterdeployment", name, "-n", namespace)
	w.filterIs(t, namespace, name, "asm-test:v0.4")
	start("third")
	w.filterIs(t, namespace, name, "")
	w.filterIs(t, namespace, "taken", "registry.example.com/a:v1")

	for _, right := range []string{"get secrets", "create pods", "patch mutatingwebhookconfigurations", "delete asmfilterdeployments", "patch leases"} {
		if out, err := w.TryKubectl("", append([]string{"auth", "can-i", "--as", "system:serviceaccount:" + own + ":sidecar-injector-filters", "-n", namespace}, strings.Fields(right)...)...); err == nil {
			t.Errorf("it may %s: %s", right, out)
		}
	}
}
