package webhook

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the goldens anew")

func TestWebhooksAreTheGoldens(t *testing.T) {
	base := Options{Namespace: "understudy-system", Revisions: []string{"understudy"}, Default: true, CABundle: []byte("CA")}
	tests := map[string]func(*Options){
		"default":        func(*Options) {},
		"all-namespaces": func(o *Options) { o.AllNamespaces = true },
		"only-asked":     func(o *Options) { o.OnlyAsked = true },
		"not-default": func(o *Options) {
			o.Default, o.AllNamespaces, o.Revisions, o.CABundle = false, true, []string{"understudy", "prod"}, nil
		},
		"paused": func(o *Options) { o.Paused = true },
	}
	for name, change := range tests {
		o := base
		change(&o)
		got, err := yaml.Marshal(Webhooks(o))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join("testdata", name+".yaml")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-update writes it):\n%s", name, diff)
		}
	}
}

// TestOptionsShareNothing: entries are made of common parts, and none may write into another's.
func TestOptionsShareNothing(t *testing.T) {
	seen := make(map[*metav1.LabelSelectorRequirement]string)
	for _, w := range Webhooks(Options{Namespace: "n", Revisions: []string{"r"}, Default: true, AllNamespaces: true}) {
		for i := range w.NamespaceSelector.MatchExpressions {
			r := &w.NamespaceSelector.MatchExpressions[i]
			if other, ok := seen[r]; ok {
				t.Errorf("%s and %s have the same requirement", w.Name, other)
			}
			seen[r] = w.Name
		}
	}
}

func TestClaimsDefault(t *testing.T) {
	enabled := &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled"}}
	tests := []struct {
		name      string
		selector  *metav1.LabelSelector
		operation admissionregistrationv1.OperationType
		resource  string
		claims    bool
	}{
		{"istio", enabled, "CREATE", "pods", true},
		{"anything", enabled, "*", "*", true},
		{"an expression", &metav1.LabelSelector{MatchExpressions: requirements(in("istio-injection", "enabled", "yes"))}, "CREATE", "pods", true},
		{"whatever it says", &metav1.LabelSelector{MatchExpressions: requirements(present("istio-injection"))}, "CREATE", "pods", true},
		{"let go", &metav1.LabelSelector{MatchLabels: map[string]string{"istio-injection": "enabled", "istio.io/deactivated": "never-match"}}, "CREATE", "pods", false},
		{"a revision", &metav1.LabelSelector{MatchExpressions: requirements(in("istio.io/rev", "canary"), absent("istio-injection"))}, "CREATE", "pods", false},
		{"all but disabled", &metav1.LabelSelector{MatchExpressions: requirements(notIn("istio-injection", "disabled"))}, "CREATE", "pods", false},
		{"everything", nil, "CREATE", "pods", false},
		{"updates", enabled, "UPDATE", "pods", false},
		{"services", enabled, "CREATE", "services", false},
		{"a selector that is none", &metav1.LabelSelector{MatchExpressions: requirements(in("istio-injection"))}, "CREATE", "pods", false},
	}
	for _, tt := range tests {
		c := &admissionregistrationv1.MutatingWebhookConfiguration{Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "w", NamespaceSelector: tt.selector, Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{tt.operation}, Rule: admissionregistrationv1.Rule{Resources: []string{tt.resource}},
			}},
		}}}
		if got := ClaimsDefault(c); (got == "w") != tt.claims {
			t.Errorf("%s: %q, want a claim: %v", tt.name, got, tt.claims)
		}
	}
}
