package versions

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"understudy.mesh/cmd/sidecar-injector/internal/terminal"
)

// WriteJSON writes generations for programs.
func WriteJSON(out io.Writer, all []Generation) error {
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(struct {
		Generations []Generation `json:"generations"`
	}{append([]Generation{}, all...)})
}

// WriteText writes how many pods have which versions, and then the generations that something is the matter with.
func WriteText(out io.Writer, all []Generation) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "no pod has a sidecar")
		return err
	}
	counts := map[Generation]int{}
	for _, g := range all {
		kind := Generation{Role: g.Role, Agent: g.Agent, Envoy: g.Envoy, Image: g.Image, Digest: g.Digest}
		if g.Unknown != "" {
			kind.Role = "not known"
		}
		counts[kind]++
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "PODS\tROLE\tAGENT\tENVOY\tIMAGE\tDIGEST")
	order := slices.SortedFunc(maps.Keys(counts), func(a, b Generation) int {
		return cmp.Or(strings.Compare(a.Agent, b.Agent), strings.Compare(a.Envoy, b.Envoy), strings.Compare(a.Image, b.Image), strings.Compare(a.Digest, b.Digest), strings.Compare(a.Role, b.Role))
	})
	for _, g := range order {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", counts[g], dash(g.Role), dash(g.Agent), dash(g.Envoy), dash(g.Image), dash(g.Digest))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, g := range all {
		if why := cmp.Or(g.Below, g.Unknown); why != "" {
			fmt.Fprintf(out, "%s/%s: %s\n", g.Namespace, g.Pod, terminal.Printable(strings.TrimSpace(why+" "+role(g))))
		}
	}
	return nil
}

func dash(text string) string { return cmp.Or(terminal.Printable(text), "-") }

// role is worth a word if it is not the usual one.
func role(g Generation) string {
	if g.Role == "" || g.Role == "serving" {
		return ""
	}
	return "(" + g.Role + ")"
}
