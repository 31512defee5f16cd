// Package policytable owns ASM's table of which pods are injected, as its users have it: what is ticked on the console's page, and what
// becomes of a pod then. It is data, and an oracle that shares nothing with the code which decides.
package policytable

import "strings"

// Absent is a label or annotation that is not there.
const Absent = "absent"

// Row is one of the table: which boxes are ticked, and what becomes of pods inside the gate: y, n, or - where the row has no
// selectors.
type Row struct {
	// Boxes has A for all namespaces, B for annotations, C for selectors.
	Boxes string
	// gate is which namespaces' pods are candidates: not-disabled or enabled.
	gate                            string
	yes, no, never, always, nothing byte
}

// Rows is the table.
func Rows() []Row {
	return []Row{
		{"A", "not-disabled", 'y', 'n', '-', '-', 'n'},
		{"AC", "not-disabled", 'y', 'n', 'n', 'y', 'n'},
		{"B", "enabled", 'y', 'n', '-', '-', 'y'},
		{"BC", "enabled", 'y', 'n', 'n', 'y', 'y'},
		{"AB", "not-disabled", 'y', 'n', '-', '-', 'y'},
		{"ABC", "not-disabled", 'y', 'n', 'n', 'y', 'y'},
		{"C", "enabled", 'y', 'n', 'n', 'y', 'n'},
		{"", "enabled", 'y', 'n', '-', '-', 'n'},
	}
}

// Ticked reports whether a row has a box.
func (r Row) Ticked(box string) bool { return strings.Contains(r.Boxes, box) }

// Injection is spec.injection of a SidecarProfile that says the same as the row, as JSON. Its selectors go by the labels never (the
// second of its list) and always.
func (r Row) Injection() string {
	flag := func(box string) string {
		if r.Ticked(box) {
			return "true"
		}
		return "false"
	}
	text := `{"enableNamespacesByDefault": ` + flag("A") + `, "autoInjectByAnnotation": ` + flag("B")
	if r.Ticked("C") {
		text += `, "neverInjectSelector": [{"matchExpressions": [{"key": "other", "operator": "Exists"}]}, {"matchExpressions": [{"key": "never", "operator": "Exists"}]}]` +
			`, "alwaysInjectSelector": [{"matchExpressions": [{"key": "always", "operator": "Exists"}]}]`
	}
	return text + "}"
}

// Pod is what a pod and its namespace say, as far as the table goes by it.
type Pod struct {
	// Namespace is the namespace's label istio-injection; Label and Annotation are the pod's sidecar.istio.io/inject.
	Namespace, Label, Annotation string
	// Never and Always are that the pod has the label which a selector goes by.
	Never, Always bool
}

// says is what the pod says of itself, the label before the annotation: true, false, or something that counts as nothing.
func (p Pod) says() string {
	said := p.Label
	if said == Absent {
		said = p.Annotation
	}
	return strings.ToLower(strings.TrimSpace(said))
}

// Warned reports whether the pod says something that counts as nothing, which its author is told.
func (p Pod) Warned() bool {
	said := p.says()
	return said != Absent && said != "true" && said != "false"
}

// candidate reports whether the namespace, or the pod's label, opens the gate.
func (r Row) candidate(p Pod) bool {
	if p.Namespace == Absent && p.Label != Absent && p.says() == "true" {
		return true
	}
	if r.gate == "enabled" {
		return p.Namespace == "enabled"
	}
	return p.Namespace != "disabled"
}

// Wants says what becomes of a pod, and by which rule.
func (r Row) Wants(p Pod) (inject bool, rule string) {
	switch {
	case p.Namespace == "disabled":
		return false, "namespace-disabled"
	case !r.candidate(p):
		return false, "namespace-not-selected"
	case p.says() == "false":
		return r.no == 'y', "pod-says-no"
	case p.says() == "true":
		return r.yes == 'y', "pod-says-yes"
	case p.Never && r.Ticked("C"):
		return r.never == 'y', "never-selector[1]"
	case p.Always && r.Ticked("C"):
		return r.always == 'y', "always-selector[0]"
	case r.Ticked("B"):
		return r.nothing == 'y', "policy-on"
	}
	return r.nothing == 'y', "policy-off"
}

// Every calls f for each combination of what may be said.
func Every(namespaces, labels, annotations []string, f func(Pod)) {
	for _, namespace := range namespaces {
		for _, label := range labels {
			for _, annotation := range annotations {
				for _, never := range []bool{false, true} {
					for _, always := range []bool{false, true} {
						f(Pod{namespace, label, annotation, never, always})
					}
				}
			}
		}
	}
}
