// Package explain owns what the command explain says: whether a workload is injected, by which rule, what would change that,
// and with which settings.
package explain

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// Report is what is said of one workload.
type Report struct {
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	Inject    bool   `json:"inject"`
	Rule      string `json:"rule"`
	// Overridden are rules that say the opposite and come later.
	Overridden []string `json:"overridden,omitempty"`
	// Flips are single changes after which the verdict is the opposite.
	Flips    []string      `json:"flips,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
	Error    string        `json:"error,omitempty"` // why the pod would be refused
	Settings []profile.Row `json:"settings,omitempty"`
}

// Of explains one workload in a namespace. modern is that every node has a kubelet as [inject.ParseKubelet] says.
func Of(w offline.Workload, policy inject.Policy, namespace inject.Namespace, base *profile.Base, modern bool) Report {
	verdict := inject.Decide(policy, namespace, w.Pod)
	r := Report{
		Kind: w.Kind, Name: w.Name, Namespace: namespace.Name,
		Inject: verdict.Inject, Rule: verdict.Rule, Overridden: verdict.Overridden, Warnings: verdict.Warnings,
		Flips: flips(policy, namespace, w.Pod, verdict.Inject),
	}
	settings, warnings, err := inject.Settings(w.Pod, base)
	r.Settings = settings.Rows()
	if verdict.Inject && err == nil {
		var more []string
		_, more, err = w.Patch(settings, namespace, modern)
		warnings = append(warnings, more...)
	}
	if verdict.Inject {
		r.Warnings = append(r.Warnings, warnings...)
	}
	if err != nil {
		r.refused(verdict.Inject, err)
	}
	return r
}

// refused notes what is wrong with the settings, which matters only to a pod that is injected.
func (r *Report) refused(inject bool, err error) {
	if inject {
		r.Error = strings.TrimPrefix(r.Error+"\n"+err.Error(), "\n")
		return
	}
	r.Warnings = append(r.Warnings, err.Error())
}

// WriteJSON writes reports for programs.
func WriteJSON(out io.Writer, reports []Report) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Workloads []Report `json:"workloads"`
	}{append([]Report{}, reports...)})
}

// WriteText writes reports for people.
func WriteText(out io.Writer, reports []Report) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i, r := range reports {
		if i > 0 {
			fmt.Fprintln(w)
		}
		r.writeText(w)
	}
	return w.Flush()
}

func (r Report) writeText(w io.Writer) {
	verdict := "is not injected"
	if r.Inject {
		verdict = "is injected"
	}
	fmt.Fprintf(w, "%s %s/%s %s: %s\n", r.Kind, r.Namespace, r.Name, verdict, r.Rule)
	for _, part := range []struct {
		name  string
		lines []string
	}{{"overridden", r.Overridden}, {"warning", r.Warnings}, {"refused", lines(r.Error)}, {"the opposite with", r.Flips}} {
		for _, line := range part.lines {
			fmt.Fprintf(w, "  %s: %s\n", part.name, line)
		}
	}
	fmt.Fprintln(w, "  SETTING\tVALUE\tSOURCE")
	for _, row := range r.Settings {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", row.Field, plain(row.Value), row.Source)
	}
}

func lines(text string) []string {
	return slices.DeleteFunc(strings.Split(text, "\n"), func(s string) bool { return s == "" })
}

// plain is a value on one line: a word as it is, anything else as JSON.
func plain(v any) string {
	if v == nil {
		return "-"
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	var word string
	if json.Unmarshal(text, &word) == nil && word != "" && !strings.ContainsAny(word, " \t\n\"") {
		return word
	}
	return string(text)
}
