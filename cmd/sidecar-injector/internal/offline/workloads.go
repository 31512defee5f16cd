package offline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlv3 "go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

// Workload is an object that makes pods, or a pod.
type Workload struct {
	Kind, Name string
	Namespace  string // "": the object does not say
	Pod        *corev1.Pod

	selector   *metav1.LabelSelector // of its pods; nil: it says none
	apiVersion string
	template   []byte // the pod, or its template, as JSON
	at         string // its place in the document, as a JSON pointer
}

// Patch is the JSON patch of the workload's template, in a namespace; nil if there is nothing to do. modern is that every node has a
// kubelet as [inject.ParseKubelet] says.
func (w Workload) Patch(s *profile.Settings, namespace inject.Namespace, modern bool) (ops []byte, warnings []string, err error) {
	pod, err := inject.Read(w.template)
	if err != nil {
		return nil, nil, err
	}
	return pod.Patch(s, w.environment(namespace, modern))
}

// Change is what a new pod of the workload would have otherwise than one that runs.
func (w Workload) Change(running *corev1.Pod, verdict inject.Verdict, s *profile.Settings, namespace inject.Namespace, modern bool) (inject.Change, error) {
	pod, err := inject.Read(w.template)
	if err != nil {
		return inject.NoChange, err
	}
	return pod.Change(running, verdict, s, w.environment(namespace, modern))
}

// Patched is the workload's template with its patch made, as JSON.
func (w Workload) Patched(s *profile.Settings, namespace inject.Namespace, modern bool) (text []byte, warnings []string, err error) {
	patch, warnings, err := w.Patch(s, namespace, modern)
	var ops []operation
	if err == nil && patch != nil {
		err = json.Unmarshal(patch, &ops)
	}
	if err == nil {
		text, err = edit(w.template, ops)
	}
	if err == nil {
		text, err = yaml.YAMLToJSON(text)
	}
	return text, warnings, err
}

// Selector is that of the workload's pods, as a request for them has it.
func (w Workload) Selector() (string, error) {
	if w.selector == nil {
		return labels.SelectorFromSet(w.Pod.Labels).String(), nil
	}
	s, err := metav1.LabelSelectorAsSelector(w.selector)
	if err != nil {
		return "", fmt.Errorf("%s %q: spec.selector: %w", w.Kind, w.Name, err)
	}
	return s.String(), nil
}

// SidecarSet is the object by which OpenKruise injects the workload's pods: those of its selector that say that they want it.
func (w Workload) SidecarSet(api inject.KruiseVersion, s *profile.Settings, namespace inject.Namespace) (*inject.SidecarSet, []string, error) {
	selector := w.selector.DeepCopy()
	if selector == nil { // a pod, which has none
		selector = &metav1.LabelSelector{MatchLabels: maps.Clone(w.Pod.Labels)}
	}
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[sidecarSetLabel] = "true"
	name := namespace.Name
	if w.Name != "" {
		name += "-" + w.Name
	}
	of := inject.SidecarSetOf{API: api, Name: name, Selector: selector, Template: w.template}
	return inject.NewSidecarSet(of, s, w.environment(namespace, false)) // Kruise changes no resources of the idle slot
}

// AnyWorkload is whatever has a label app, or that value of it, of which nothing else is known.
func AnyWorkload(app string) Workload {
	w := Workload{Kind: "Pod", Name: app, Pod: &corev1.Pod{}}
	if app != "" {
		w.Pod.Labels = map[string]string{"app": app}
	}
	return w
}

// sidecarSetLabel is how a pod of ASM's manual says that it is to have what the SidecarSet gives.
const sidecarSetLabel = "sidecarset-injected"

func (w Workload) environment(namespace inject.Namespace, modern bool) inject.Environment {
	env := inject.Environment{Namespace: namespace, Native: modern, Resize: modern}
	if w.Kind != "Pod" {
		env.Workload = inject.Workload{APIVersion: w.apiVersion, Kind: w.Kind, Name: w.Name}
	}
	return env
}

// ReadWorkloads reads the objects of a file that have a pod template, however deep in a List. Others are left out. A key
// that is there twice is an error: which one Kubernetes takes, users do not know.
func ReadWorkloads(file string, stdin io.Reader) ([]Workload, error) {
	documents, err := read(file, stdin)
	if err != nil {
		return nil, err
	}
	var found []Workload
	for _, d := range documents {
		more, err := d.workloads()
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// workloads are those of one document.
func (d document) workloads() ([]Workload, error) {
	var whole any
	err := yamlv3.Unmarshal(d.text, &whole) // finds keys that are there twice, and lets a merged one be there again
	text := []byte(nil)
	if err == nil {
		text, err = yaml.YAMLToJSON(d.text) // as kubectl does
	}
	if err != nil {
		return nil, d.errorf("%s", d.lines(profile.YAMLError(err).Error()))
	}
	found, err := workloads(text, "")
	if err != nil {
		return nil, d.errorf("%w", err)
	}
	return found, nil
}

// object is what tells whether there is a pod template in an object.
type object struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   metav1.ObjectMeta `json:"metadata"`
	Items      []json.RawMessage `json:"items"`
	Spec       json.RawMessage   `json:"spec"`
}

// workloads are those of an object, which is at a place of a document.
func workloads(text []byte, at string) ([]Workload, error) {
	var o object
	if json.Unmarshal(text, &o) != nil {
		return nil, nil // no object of Kubernetes
	}
	if strings.HasSuffix(o.Kind, "List") {
		var all []Workload
		for i, item := range o.Items {
			more, err := workloads(item, fmt.Sprintf("%s/items/%d", at, i))
			if err != nil {
				return nil, fmt.Errorf("items[%d]: %w", i, err)
			}
			all = append(all, more...)
		}
		return all, nil
	}
	raw, below, err := podTemplate(o, text)
	if raw == nil || err != nil {
		return nil, err
	}
	var template corev1.PodTemplateSpec
	if err := json.Unmarshal(raw, &template); err != nil {
		return nil, fmt.Errorf("%s %q: %w", o.Kind, o.Metadata.Name, err)
	}
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.Namespace = o.Metadata.Namespace
	name := o.Metadata.Name
	if name == "" {
		name = o.Metadata.GenerateName
	}
	return []Workload{{o.Kind, name, o.Metadata.Namespace, pod, selectorOf(o), o.APIVersion, raw, at + below}}, nil
}

// selectorOf is an object's; nil if it has none, or something else by that name.
func selectorOf(o object) *metav1.LabelSelector {
	if o.Kind == "ReplicationController" { // whose selector is of labels alone
		var spec struct {
			Selector map[string]string `json:"selector"`
		}
		if json.Unmarshal(o.Spec, &spec) != nil || len(spec.Selector) == 0 {
			return nil
		}
		return &metav1.LabelSelector{MatchLabels: spec.Selector}
	}
	var spec struct {
		Selector *metav1.LabelSelector `json:"selector"`
	}
	if json.Unmarshal(o.Spec, &spec) != nil {
		return nil
	}
	return spec.Selector
}

// podTemplate is an object's, and its place in that; nil if it has none.
func podTemplate(o object, text []byte) (raw json.RawMessage, below string, err error) {
	var spec struct {
		Template    json.RawMessage `json:"template"`
		JobTemplate struct {
			Spec struct {
				Template json.RawMessage `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	}
	below = "/spec/template"
	if o.Kind == "Pod" {
		spec.Template, below = text, ""
	} else if json.Unmarshal(o.Spec, &spec) != nil {
		return nil, "", nil // a kind whose template is something else
	}
	if spec.Template == nil {
		spec.Template, below = spec.JobTemplate.Spec.Template, "/spec/jobTemplate/spec/template"
	}
	if o.Kind == "UnitedDeployment" {
		spec.Template, below = subsetTemplate(spec.Template)
	}
	var probe struct {
		Spec struct {
			Containers []any `json:"containers"`
		} `json:"spec"`
	}
	if spec.Template == nil || json.Unmarshal(spec.Template, &probe) != nil || len(probe.Spec.Containers) == 0 {
		return nil, "", nil // of an ExternalSecret, for one
	}
	return spec.Template, below, nil
}

// subsetTemplate is the pod template of a UnitedDeployment's workloads: its own is that of one of four kinds, such as cloneSetTemplate.
func subsetTemplate(template json.RawMessage) (raw json.RawMessage, below string) {
	var kinds map[string]struct {
		Spec struct {
			Template json.RawMessage `json:"template"`
		} `json:"spec"`
	}
	if json.Unmarshal(template, &kinds) != nil {
		return nil, ""
	}
	for kind, of := range kinds { // the API server takes one alone
		raw, below = of.Spec.Template, "/spec/template/"+kind+"/spec/template"
	}
	return raw, below
}

// TemplatePath are the fields that lead to the pod template in the object.
func (w Workload) TemplatePath() []string {
	return strings.Split(strings.Trim(w.at, "/"), "/")
}

// NewWorkload is one object that has a pod template, or is a pod, as JSON.
func NewWorkload(text []byte) (Workload, error) {
	found, err := workloads(text, "")
	if err == nil && len(found) != 1 {
		err = errors.New("want one object with a pod template")
	}
	if err != nil {
		return Workload{}, err
	}
	return found[0], nil
}

// EachObject calls do with each object of a file, as JSON.
func EachObject(file string, stdin io.Reader, do func(text []byte) error) error {
	documents, err := read(file, stdin)
	if err != nil {
		return err
	}
	for _, d := range documents {
		text, err := yaml.YAMLToJSONStrict(d.text)
		if err != nil {
			return d.errorf("%s", d.lines(profile.YAMLError(err).Error()))
		}
		if err := do(text); err != nil {
			return d.errorf("%w", err)
		}
	}
	return nil
}

// document is one of a file's.
type document struct {
	file          string
	number, first int    // from 1: which it is, and its first line
	mark          []byte // what separates it from the one before
	text          []byte
}

func (d document) errorf(format string, args ...any) error {
	return fmt.Errorf("%s, document %d: %w", d.file, d.number, fmt.Errorf(format, args...))
}

var lineNumber = regexp.MustCompile(`\bline (\d+)`)

// lines turns the parser's lines of a document into the file's.
func (d document) lines(message string) string {
	return lineNumber.ReplaceAllStringFunc(message, func(s string) string {
		n, err := strconv.Atoi(strings.TrimPrefix(s, "line "))
		if err != nil {
			return s
		}
		return fmt.Sprintf("line %d", n+d.first-1)
	})
}

// read parts a file into its documents; empty ones do not count.
func read(file string, stdin io.Reader) ([]document, error) {
	data, err := readFile(file, stdin)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(split(file, data), document.empty), nil
}

// split parts a file into all its documents, so that their marks and texts together are the file.
func split(file string, data []byte) []document {
	var documents []document
	d := document{file: file, number: 1, first: 1}
	line := 0
	for text := range bytes.Lines(data) {
		line++
		after, is := bytes.CutPrefix(text, []byte("---"))
		rest := bytes.TrimSpace(after)
		if !is || len(rest) > 0 && len(bytes.TrimLeft(after, " \t")) == len(after) { // ---- is text
			d.text = append(d.text, text...)
			continue
		}
		documents = append(documents, d)
		next := document{file: file, number: d.number, first: line + 1, mark: text}
		if !d.empty() {
			next.number++
		}
		if len(rest) > 0 && rest[0] != '#' { // the document begins in this line
			next.mark, next.text, next.first = text[:len(text)-len(after)], after, line
		}
		d = next
	}
	return append(documents, d)
}

func (d document) empty() bool { return len(bytes.TrimSpace(withoutComments(d.text))) == 0 }

// withoutComments is a document without lines that are comments.
func withoutComments(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}
