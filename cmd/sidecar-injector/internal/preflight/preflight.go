// Package preflight owns what a move from Istio's injector to ours would change: for each workload that Istio injects, what runs in its pods now
// against what ours would make of its template once its namespace's label has moved.
package preflight

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/inject"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/compare"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/terminal"
)

// Report is what is said of one workload.
type Report struct {
	name string
	// Blockers are why the move would break it, Differences what it would have otherwise, Warnings what the injector would say.
	Blockers, Differences, Warnings []string
}

// Settings are those that ours would go by.
type Settings struct {
	Profiles *offline.Profiles
	// Modern is that every node has a kubelet as [inject.ParseKubelet] says.
	Modern bool
}

// Of looks at a workload in its namespace. It is nil if Istio does not inject it and ours would not.
func (s Settings) Of(owner *cluster.Owner, now inject.Namespace) *Report {
	r := &Report{name: fmt.Sprintf("%s %s/%s", owner.Kind, owner.Namespace, owner.Name)}
	moved := now
	moved.Labels = movedLabels(now.Labels)
	running := injectedByIstio(owner.Pods)
	template := owner.Template
	verdict := inject.Decide(s.Profiles.Policy(), moved, template.Pod)
	if owner.Kind == "Pod" || !owner.Known() { // the template is the pod, with what Istio has put into it
		if running == nil {
			return nil
		}
		r.Warnings = append(r.Warnings, "its template is not known: what ours would make of it cannot be said")
		return r
	}
	switch {
	case running == nil && !verdict.Inject:
		return nil
	case running != nil && !verdict.Inject:
		r.Blockers = append(r.Blockers, "Istio injects it, and ours would not: "+verdict.Rule+remedies[verdict.Rule])
		r.Warnings = append(r.Warnings, verdict.Warnings...)
		return r
	case running == nil:
		r.Differences = append(r.Differences, "no pod of it is injected, and new ones would be: "+verdict.Rule)
	}
	r.Warnings = append(r.Warnings, verdict.Warnings...)
	made, err := s.make(r, template, moved)
	if err == nil && running != nil {
		err = r.compare(running, made)
	}
	if err == nil && running != nil {
		err = r.compareAround(running, made)
	}
	if err != nil {
		r.Blockers = append(r.Blockers, strings.Split(err.Error(), "\n")...)
	}
	return r
}

// remedies are what to do about a rule by which a pod is not injected, where its name does not say it.
var remedies = map[string]string{
	"foreign-agent":  ": its template has Istio's containers already: take them and the annotation " + inject.AnnotationStatus + " out of it",
	"other-revision": ": its template has the label " + inject.LabelRevision + ": take it out",
}

// make is what ours makes of a template.
func (s Settings) make(r *Report, template offline.Workload, namespace inject.Namespace) ([]byte, error) {
	settings, warnings, err := inject.Settings(template.Pod, s.Profiles.Base(namespace.Name))
	if err != nil {
		return nil, err
	}
	made, more, err := template.Patched(settings, namespace, s.Modern)
	r.Warnings = append(append(r.Warnings, warnings...), more...)
	return made, err
}

// movedLabels are a namespace's after the move: one that Istio injects is ours then.
func movedLabels(now map[string]string) map[string]string {
	_, labelled := now[inject.LabelInjection]
	_, revisioned := now[inject.LabelRevision]
	if now[inject.LabelInjection] == "disabled" || !labelled && !revisioned {
		return now
	}
	moved := maps.Clone(now)
	delete(moved, inject.LabelInjection)
	moved[inject.LabelRevision] = contract.Revision
	return moved
}

// injectedByIstio is the newest pod that another injector of Istio's kind has injected; nil if there is none.
func injectedByIstio(pods []*corev1.Pod) (newest *corev1.Pod) {
	for _, pod := range pods {
		var status struct {
			Containers []string `json:"containers"`
			Revision   string   `json:"revision"`
		}
		text, ok := pod.Annotations[inject.AnnotationStatus]
		if !ok || json.Unmarshal([]byte(text), &status) != nil || status.Revision == contract.Revision {
			continue
		}
		if newest == nil || newest.CreationTimestamp.Before(&pod.CreationTimestamp) {
			newest = pod
		}
	}
	return newest
}

// compare notes in what the containers differ, but for what always does.
func (r *Report) compare(running *corev1.Pod, made []byte) error {
	all, err := compare.Containers(running, made)
	if err != nil {
		return err
	}
	r.differ(all)
	return nil
}

// differ notes differences, but for those that always are.
func (r *Report) differ(all []compare.Difference) {
	for _, d := range all {
		for _, d := range parts(d) {
			if !always.MatchString(d.Field) && !sameValue(d.Before, d.After) {
				r.Differences = append(r.Differences, fmt.Sprintf("%s: %s -> %s", d.Field, short(d.Before), short(d.After)))
			}
		}
	}
}

// always are fields that differ in every pod, whatever is set.
var always = regexp.MustCompile(`^(` + strings.Join([]string{
	`[^.]*\.image`,
	`istio-proxy\.env\[(GOMAXPROCS|GOMEMLIMIT)\]`,      // the agent takes both from the control group
	`istio-proxy\.env\[POD_UID\]`,                      // where generations meet
	`istio-proxy\.env\[ISTIO_CPU_LIMIT\]\..*\.divisor`, // 0 is written for 1
	`istio-proxy\.env\[ISTIO_META_ISTIO_VERSION\]`,     // Istio's agent is of its own release
	`istio-(init|validation)\.args --log_output_level`,
	`[^.]*\.securityContext\.seccompProfile`, // RuntimeDefault, unless the pod or the settings say otherwise
}, "|") + `)$`)

// parts are a difference as those of its single arguments, if it is one of arguments.
func parts(d compare.Difference) (found []compare.Difference) {
	if !strings.HasSuffix(d.Field, ".args") {
		return []compare.Difference{d}
	}
	before, after := arguments(d.Before), arguments(d.After)
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if before[name] != after[name] {
			found = append(found, compare.Difference{Field: strings.TrimSpace(d.Field + " " + name), Before: before[name], After: after[name]})
		}
	}
	return found
}

// arguments are a command line by its flags, and under "" what belongs to none. The order in a list of ports or addresses means nothing.
func arguments(list any) map[string]string {
	found := map[string]string{}
	flag := ""
	words, _ := list.([]any)
	for _, word := range words {
		text, _ := word.(string)
		name, value, given := strings.Cut(text, "=")
		if !strings.HasPrefix(text, "-") {
			elements := strings.Split(text, ",")
			slices.Sort(elements)
			found[flag] = strings.TrimSpace(found[flag] + " " + strings.Join(elements, ","))
			flag = ""
			continue
		}
		found[name] = value
		if flag = name; given {
			flag = ""
		}
	}
	return found
}

// sameValue reports whether two values say the same: JSON that is written otherwise, or what a variable is without being set.
func sameValue(before, after any) bool {
	if before == nil {
		variable, _ := after.(map[string]any)
		return variable["name"] == contract.DrainVariable && variable["value"] == drainDefault
	}
	a, isText := before.(string)
	b, areTexts := after.(string)
	var x, y any
	return isText && areTexts && json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// drainDefault is Istio's, in seconds.
const drainDefault = "5"

// shownValue is how much of a value is shown.
const shownValue = 120

// short is a value on part of a line.
func short(v any) string {
	if v == nil {
		return "none"
	}
	text, err := json.Marshal(v)
	if err != nil {
		text = fmt.Append(nil, v)
	}
	if runes := []rune(string(text)); len(runes) > shownValue {
		return string(runes[:shownValue-1]) + "…"
	}
	return string(text)
}

// Write says it to people.
func (r *Report) Write(out io.Writer) {
	verdict := "as it is"
	switch {
	case len(r.Blockers) > 0:
		verdict = "blocked"
	case len(r.Differences)+len(r.Warnings) > 0:
		verdict = "differs"
	}
	fmt.Fprintf(out, "%s: %s\n", r.name, verdict)
	for _, part := range []struct {
		what  string
		lines []string
	}{{"blocker", r.Blockers}, {"difference", r.Differences}, {"warning", r.Warnings}} {
		for _, line := range part.lines {
			fmt.Fprintf(out, "  %s: %s\n", part.what, terminal.Printable(line))
		}
	}
}
