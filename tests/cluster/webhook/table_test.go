package webhook

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/policytable"
)

const (
	// rowAnnotation is on every pod that is injected by the settings of a row.
	rowAnnotation = "example.com/row"
	// askers is how many pods are created at a time.
	askers = 4
)

// injectPolicy puts a policy (spec.injection as JSON) into force under a name, which injected pods have as an annotation.
func (w *world) injectPolicy(t *testing.T, injection, name string) {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(injection), &fields); err != nil {
		t.Fatal(err)
	}
	fields["injectedAnnotations"] = map[string]string{rowAnnotation: name}
	text, err := json.Marshal(map[string]any{"proxy": map[string]string{"image": "proxy:v1"}, "injection": fields})
	if err != nil {
		t.Fatal(err)
	}
	w.settings(t, string(text))
}

// rowInForce puts a row into force. The injector goes by it when a pod says so, and the API server when it asks about what the row before
// did not have it ask about; what it may still ask about besides changes no verdict.
func (w *world) rowInForce(t *testing.T, row policytable.Row, namespaces map[string]string) {
	t.Helper()
	name := "boxes-" + row.Boxes
	w.injectPolicy(t, row.Injection(), name)
	lab.Eventually(t, limit, name+" are in force", func() error {
		asks, err := w.try(namespaces["enabled"], pod(label(inject.LabelInject, "true")))
		if err != nil {
			return err
		}
		anywhere, err := w.create(namespaces[policytable.Absent], pod(annotation(inject.LabelInject, "true")))
		if err != nil {
			return err
		}
		chosen, err := w.create(namespaces["enabled"], pod(label("always", "")))
		if err != nil {
			return err
		}
		if asks.pod.Annotations[rowAnnotation] != name || anywhere != row.Ticked("A") || chosen != (row.Ticked("B") || row.Ticked("C")) {
			return fmt.Errorf("a pod that asks is injected by %q, elsewhere: %v, one that a selector chooses: %v", asks.pod.Annotations[rowAnnotation], anywhere, chosen)
		}
		return nil
	})
}

// podOf is a pod that says what one of the table says.
func podOf(p policytable.Pod) *corev1.Pod {
	made := pod()
	if p.Label != policytable.Absent {
		metav1.SetMetaDataLabel(&made.ObjectMeta, inject.LabelInject, p.Label)
	}
	if p.Annotation != policytable.Absent {
		metav1.SetMetaDataAnnotation(&made.ObjectMeta, inject.LabelInject, p.Annotation)
	}
	if p.Never {
		metav1.SetMetaDataLabel(&made.ObjectMeta, "never", "x")
	}
	if p.Always {
		metav1.SetMetaDataLabel(&made.ObjectMeta, "always", "")
	}
	return made
}

// judge creates a pod and says what is wrong with what became of it; "" is nothing.
func (w *world) judge(row policytable.Row, p policytable.Pod, namespace string) string {
	made, err := w.try(namespace, podOf(p))
	if err != nil {
		return err.Error()
	}
	want, rule := row.Wants(p)
	if made.injected != want {
		return fmt.Sprintf("injected %v, want %v by %s", made.injected, want, rule)
	}
	warned := strings.Contains(strings.Join(made.warnings, "\n"), "counts as not set")
	// Where nothing can come of it, the API server need not ask.
	if warned && !p.Warned() || !warned && p.Warned() && (want || p.Namespace == "enabled") {
		return fmt.Sprintf("injected %v with the warnings %q", want, made.warnings)
	}
	return ""
}

// TestWebhookTable is the table of the manual's chapter 2 through the API server: every row, every label of the namespace, all that a pod
// may say, and every selector; then the chapter's scenarios, and an injector beside Istio's.
func TestWebhookTable(t *testing.T) {
	w := newWorld(t)
	program, port := buildInjector(t), freeport.Get(t)
	arguments := []string{"--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port), "--linger", "0s"}
	i := w.start(t, program, port, arguments...)
	namespaces := map[string]string{policytable.Absent: w.namespace(t)}
	for _, value := range []string{"enabled", "disabled", "maybe"} {
		namespaces[value] = w.namespace(t, inject.LabelInjection+"="+value)
	}
	w.configuration(t, 4)
	w.mended(t, namespaces["enabled"], "the first pod")

	began, n := time.Now(), 0
	for _, row := range policytable.Rows() {
		w.rowInForce(t, row, namespaces)
		pods := make(chan policytable.Pod)
		var group sync.WaitGroup
		for range askers {
			group.Go(func() {
				for p := range pods {
					if wrong := w.judge(row, p, namespaces[p.Namespace]); wrong != "" {
						t.Errorf("boxes %q, %+v: %s", row.Boxes, p, wrong)
					}
				}
			})
		}
		policytable.Every([]string{policytable.Absent, "enabled", "disabled", "maybe"}, []string{policytable.Absent, "true", "False", "yes"},
			[]string{policytable.Absent, "true ", "false", "no"}, func(p policytable.Pod) { n++; pods <- p })
		close(pods)
		group.Wait()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d pods in %s", n, time.Since(began).Round(time.Second))
	t.Run("scenarios", func(t *testing.T) { w.scenarios(t) })
	_ = i.stop(syscall.SIGTERM)
	w.start(t, program, port, append(arguments, "--default-revision=false", "--revision-tags=prod")...)
	t.Run("beside another", func(t *testing.T) { w.besideAnother(t) })
}

// scenarios are those of the manual's chapter 2, with its names, and with the blank that its screen shows in an annotation. The JSON of
// the first is lost in the manual, whose text says what it does.
func (w *world) scenarios(t *testing.T) {
	for _, name := range []string{"test1", "test2"} {
		w.named(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{inject.LabelInjection: "enabled"}}})
	}
	details := []func(*corev1.Pod){label("app", "details"), label("version", "v1")}
	const byAnnotation = `{"autoInjectByAnnotation": true}`
	for _, s := range []struct {
		name, injection, namespace string
		pod                        *corev1.Pod
		injected                   bool
	}{
		{"one-selectors", `{"autoInjectByAnnotation": true, "neverInjectSelector": [{"matchExpressions": [{"key": "notinjectapp", "operator": "Exists"}]}]}`,
			"test1", pod(details...), true},
		{"one-selectors", "", "test1", pod(append(details, label("notinjectapp", "details"))...), false},
		{"one-annotations", byAnnotation, "test1", pod(details...), true},
		{"one-annotations", "", "test1", pod(append(details, annotation(inject.LabelInject, "false"))...), false},
		{"two", byAnnotation, "test2", pod(label("app", "reviews"), annotation(inject.LabelInject, "true ")), true},
		{"two-asked", `{"autoInjectByAnnotation": false}`, "test2", pod(label("app", "reviews"), annotation(inject.LabelInject, "true ")), true},
		{"two-asked", "", "test2", pod(label("app", "reviews")), false},
	} {
		if s.injection != "" {
			w.injectPolicy(t, s.injection, s.name)
			lab.Eventually(t, limit, "scenario "+s.name+" is in force", func() error {
				made, err := w.try("test1", pod(label(inject.LabelInject, "true")))
				if err == nil && made.pod.Annotations[rowAnnotation] != s.name {
					err = fmt.Errorf("injected by %q", made.pod.Annotations[rowAnnotation])
				}
				return err
			})
		}
		check := func() error {
			made, err := w.try(s.namespace, s.pod)
			if err == nil && (made.injected != s.injected || len(made.warnings) > 0) {
				err = fmt.Errorf("injected %v with the warnings %q, want %v", made.injected, made.warnings, s.injected)
			}
			return err
		}
		if s.injected { // the API server asks again as soon as it knows
			lab.Eventually(t, limit, "scenario "+s.name, check)
		} else if err := check(); err != nil {
			t.Errorf("scenario %s: %v", s.name, err)
		}
	}
}

// besideAnother is with --default-revision=false: istio-injection is somebody else's, ours is the revision.
func (w *world) besideAnother(t *testing.T) {
	w.settings(t, `{"proxy": {"image": "proxy:v1"}}`)
	w.configuration(t, 2)
	ours := w.namespace(t, inject.LabelRevision+"=understudy")
	w.mended(t, ours, "the first pod")
	yes := label(inject.LabelInject, "true")
	for _, tt := range []struct {
		name, namespace string
		pod             *corev1.Pod
		injected        bool
	}{
		{"a tag of ours", w.namespace(t, inject.LabelRevision+"=prod"), pod(), true},
		{"ours, the pod says no", ours, pod(label(inject.LabelInject, "false")), false},
		{"enabled", w.namespace(t, inject.LabelInjection+"=enabled"), pod(), false},
		{"enabled beats our revision", w.namespace(t, inject.LabelInjection+"=enabled", inject.LabelRevision+"=understudy"), pod(), false},
		{"no label, the pod says yes", w.namespace(t), pod(yes), false},
		{"no label, our revision's pod says yes", w.namespace(t), pod(yes, label(inject.LabelRevision, "understudy")), true},
		{"no label, our revision's pod says nothing", w.namespace(t), pod(label(inject.LabelRevision, "understudy")), false},
	} {
		if injected, err := w.create(tt.namespace, tt.pod); err != nil || injected != tt.injected {
			t.Errorf("%s: injected %v, %v; want %v", tt.name, injected, err, tt.injected)
		}
	}
	// The label is nobody's here, and yet not ours: it is no conflict.
	w.condition(t, own, "Conflict", "False", "")
}
