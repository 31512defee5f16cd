// Package configcmd owns `pilot-agent config`: what it asks the running agent about its configuration from istiod, and how it
// prints the answers.
package configcmd

import (
	"encoding/json"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/istiod"
	"understudy.mesh/pkg/xds"
)

const logHelp = `Lists the clusters, listeners, routes and others that istiod has added, changed or removed for this pod's
Envoy since the container started, oldest first, with the time (UTC) at which they came: of the last ones as many
as fit in 1 MiB. A hot upgrade hands the list on. What was sent anew and is the same is no change.
With NAME only those whose names contain it: for reviews also outbound|9080||reviews.default.svc.cluster.local.`

// timeForm sorts, and says which day it was.
const timeForm = "2006-01-02T15:04:05.000Z"

// New returns the command.
func New(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Ask the running agent about the configuration that it has from istiod",
	}
	cmd.AddCommand(newLogCommand(e))
	return cmd
}

func newLogCommand(e *cli.Env) *cobra.Command {
	page := cli.Page{Path: istiod.ConfigLogPage, Query: url.Values{}, Print: printChanges}
	cmd := &cobra.Command{
		Use:   "log [NAME]",
		Short: "List what istiod has changed, and when",
		Long:  logHelp,
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				page.Query.Set("name", args[0])
			}
			return page.Ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	page.Output.AddFlag(cmd, "o")
	return cmd
}

func printChanges(w io.Writer, in *json.Decoder) error {
	rows := cli.NewTable(w, "TIME", "CHANGE", "TYPE", "NAME")
	err := cli.Each(in, func(c xds.Change) {
		rows.Add(c.Time.UTC().Format(timeForm), c.Change, c.Type[strings.LastIndexByte(c.Type, '.')+1:], c.Name)
	})
	if err != nil {
		return err
	}
	return rows.End()
}
