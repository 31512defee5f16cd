package offline

import (
	"fmt"
	"strings"
	"testing"
)

// TestPlaces: where the kinds have their pod template, and which pods are theirs.
func TestPlaces(t *testing.T) {
	const template = `{"metadata": {"labels": {"app": "x", "tier": "y"}}, "spec": {"containers": [{"name": "app"}]}}`
	for kind, tt := range map[string]struct{ spec, path, selector string }{
		"Deployment":            {`{"selector": {"matchLabels": {"app": "x"}}, "template": %s}`, "spec template", "app=x"},
		"ReplicationController": {`{"selector": {"app": "x"}, "template": %s}`, "spec template", "app=x"},
		"Job":                   {`{"template": %s}`, "spec template", "app=x,tier=y"},
		"CronJob":               {`{"jobTemplate": {"spec": {"template": %s}}}`, "spec jobTemplate spec template", "app=x,tier=y"},
		"UnitedDeployment":      {`{"selector": {"matchLabels": {"app": "x"}}, "template": {"cloneSetTemplate": {"spec": {"template": %s}}}}`, "spec template cloneSetTemplate spec template", "app=x"},
	} {
		w, err := NewWorkload([]byte(fmt.Sprintf(`{"kind": %q, "metadata": {"name": "x"}, "spec": `+tt.spec+`}`, kind, template)))
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if path := strings.Join(w.TemplatePath(), " "); path != tt.path {
			t.Errorf("%s: the template is at %q, want %q", kind, path, tt.path)
		}
		if selector, err := w.Selector(); err != nil || selector != tt.selector {
			t.Errorf("%s: selector %q, %v, want %q", kind, selector, err, tt.selector)
		}
	}
	for _, spec := range []string{`{}`, `{"template": {}}`, `{"template": "x"}`, `{"template": {"cloneSetTemplate": {"spec": {}}}}`} {
		if _, err := NewWorkload([]byte(`{"kind": "UnitedDeployment", "metadata": {"name": "x"}, "spec": ` + spec + `}`)); err == nil {
			t.Errorf("%s: no error", spec)
		}
	}
}
