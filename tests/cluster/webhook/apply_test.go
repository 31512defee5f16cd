package webhook

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"understudy.mesh/tests/lab"
)

// namespaceEntry is the entry for namespaces with istio-injection=enabled.
const namespaceEntry = "namespace.sidecar-injector.understudy.mesh"

// isWhole reports what is missing of the configuration that the injector keeps.
func isWhole(c *admissionregistrationv1.MutatingWebhookConfiguration) error {
	if len(c.Webhooks) != 4 {
		return fmt.Errorf("%d entries", len(c.Webhooks))
	}
	for _, entry := range c.Webhooks {
		if len(entry.ClientConfig.CABundle) == 0 || *entry.FailurePolicy != admissionregistrationv1.Fail || len(entry.MatchConditions) == 0 {
			return fmt.Errorf("%s: %s, %d bytes of caBundle, %d conditions", entry.Name, *entry.FailurePolicy, len(entry.ClientConfig.CABundle), len(entry.MatchConditions))
		}
	}
	return nil
}

// otherManagers: who applies the injector's manifests finds nothing to change and takes nothing away; who takes a field of the injector's
// is told, and has it only until the injector sees that; what is nobody's stays whoever wrote it.
func (w *world) otherManagers(t *testing.T) {
	configurations := w.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	whole := func(what string) {
		t.Helper()
		lab.Eventually(t, limit, what+": the configuration is whole", func() error {
			c, err := configurations.Get(t.Context(), "sidecar-injector", metav1.GetOptions{})
			if err == nil {
				err = isWhole(c)
			}
			return err
		})
	}
	whole("at first")
	manifests, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "deploy/sidecar-injector.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, arguments := range [][]string{{"diff"}, {"apply"}, {"apply", "--server-side", "--field-manager=gitops"}, {"diff", "--server-side", "--field-manager=gitops"}} {
		if _, err := w.TryKubectl(string(manifests), append(arguments, "-f", "-")...); err != nil {
			t.Errorf("%q: %v", arguments, err)
		}
		if c, err := configurations.Get(t.Context(), "sidecar-injector", metav1.GetOptions{}); err != nil {
			t.Error(err)
		} else if err := isWhole(c); err != nil {
			t.Errorf("after %q: %v", arguments, err)
		}
	}

	ignoring := fmt.Sprintf(`{"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "sidecar-injector",
"labels": {"example.com/team": "mesh"}}, "webhooks": [{"name": %q, "failurePolicy": "Ignore"}]}`, namespaceEntry)
	_, err = w.TryKubectl(ignoring, "apply", "--server-side", "--field-manager=policy", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), `conflict with "sidecar-injector"`) || !strings.Contains(err.Error(), "failurePolicy") {
		t.Errorf("a field of the injector's is taken without a word: %v", err)
	}
	w.Kubectl(t, ignoring, "apply", "--server-side", "--field-manager=policy", "--force-conflicts", "-f", "-")
	whole("a field was taken by force")
	c, err := configurations.Patch(t.Context(), "sidecar-injector", types.JSONPatchType, []byte(`[{"op": "remove", "path": "/webhooks/0"}]`), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Labels["example.com/team"] != "mesh" {
		t.Error("another's label is gone")
	}
	whole("an entry was removed")
}
