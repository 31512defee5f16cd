package wasmcmd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/envoyfilter"
)

const listHelp = `Asks the running agent which Wasm filters there are, which module each of them runs, and what stands in its place while it has none. Phases are
Pending, Pulling, Verifying, InForce, Stale (what served before serves, as what is wanted fails), Failed, and Unused: with files, a document of which
nothing applies in this pod. With -v, each patch of the document as well: what it applies to, or why it does not.`

const reloadHelp = `Has the running agent start the module of a filter anew, in every worker: one that has crashed may stay so otherwise, by its failStrategy. NAME is that of
the filter, or of its document.`

func newListCommand(e *cli.Env) *cobra.Command {
	var verbose bool
	page := &cli.Page{Path: ecds.ListPath}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the Wasm filters of the running agent, and what became of their modules",
		Long:  listHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			page.Print = printFilters
			if verbose {
				page.Print = printAll
			}
			return page.Ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	page.Output.AddFlag(cmd, "o")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "all that is known of each")
	return cmd
}

func newReloadCommand(e *cli.Env) *cobra.Command {
	page := &cli.Page{Path: ecds.ReloadPath, Method: http.MethodPost, Query: url.Values{}, Print: printReloaded}
	cmd := &cobra.Command{
		Use:   "reload NAME",
		Short: "Start the module of a Wasm filter anew, as after a crash",
		Long:  reloadHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			page.Query.Set("name", args[0])
			return page.Ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	page.Output.AddFlag(cmd, "o")
	return cmd
}

func printReloaded(w io.Writer, in *json.Decoder) error {
	var r ecds.Reloaded
	if err := in.Decode(&r); err != nil {
		return err
	}
	for _, name := range r.Names {
		fmt.Fprintln(w, "reloaded", name)
	}
	return nil
}

// shortHash is how much of a hash tells modules apart.
const shortHash = 12

func printFilters(w io.Writer, in *json.Decoder) error {
	rows := cli.NewTable(w, "NAME", "PHASE", "SHA256", "TRAFFIC", "SINCE", "REASON")
	err := cli.Each(in, func(r ecds.Report) {
		rows.Add(r.Name, r.Phase, cmp.Or(r.SHA256[:min(shortHash, len(r.SHA256))], "-"), traffic(r), since(r.Since), cmp.Or(r.Reason, "-"))
	})
	return cmp.Or(err, rows.End())
}

// traffic is what becomes of it.
func traffic(r ecds.Report) string {
	switch {
	case r.Phase == ecds.Unused:
		return "-"
	case r.Instead == "allow":
		return "passes unfiltered"
	case r.Instead == "deny":
		return "is refused"
	}
	return "is filtered"
}

func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return control.Briefly(time.Since(t)) + " ago"
}

func printAll(w io.Writer, in *json.Decoder) error {
	return cli.Each(in, func(r ecds.Report) {
		fmt.Fprintln(w, r.Name)
		line := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "  %-9s %s\n", name+":", value)
			}
		}
		line("document", r.Document)
		line("phase", r.Phase+", "+since(r.Since))
		line("reason", strings.TrimSpace(r.Reason))
		if !r.NextTry.IsZero() {
			line("next try", r.NextTry.Format(time.RFC3339))
		}
		line("traffic", traffic(r))
		line("from", r.From)
		line("sha256", r.SHA256)
		line("manifest", r.Digest)
		if r.Size > 0 {
			line("bytes", fmt.Sprint(r.Size))
		}
		for i, p := range r.Patches {
			line(fmt.Sprint("patch ", i+1), patch(p))
		}
	})
}

// patch is what became of one.
func patch(p envoyfilter.PatchReport) string {
	text := fmt.Sprintf("%s %s, %s", p.ApplyTo, p.Operation, p.Result)
	if len(p.Names) > 0 {
		text += " to " + strings.Join(p.Names, ", ")
		if more := p.Listeners - len(p.Names); more > 0 {
			text += fmt.Sprintf(" and %d more", more)
		}
	}
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	return text
}
