package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/tests/golden"
)

// TestCommandsStay compares all commands with their flags, variables and defaults with those that manifests and scripts
// may use. The flags of the settings table are in docs/settings.md.
func TestCommandsStay(t *testing.T) {
	var text strings.Builder
	describe(&text, newRootCommand(&cli.Env{}))
	golden.Check(t, "testdata/commands.golden", text.String())
}

func describe(w *strings.Builder, cmd *cobra.Command) {
	fmt.Fprintf(w, "%s\n", cmd.UseLine())
	settings := pflag.NewFlagSet("", pflag.ContinueOnError)
	cli.AddSettings(settings, true)
	cli.AddSettings(settings, false)
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if settings.Lookup(f.Name) != nil {
			return
		}
		variables := regexp.MustCompile(`\[\$.*\]`).FindString(f.Usage)
		fmt.Fprintln(w, " ", strings.TrimSpace(fmt.Sprintf("--%s -%s %s %q %s", f.Name, f.Shorthand, f.Value.Type(), f.DefValue, variables)))
	})
	for _, sub := range cmd.Commands() {
		describe(w, sub)
	}
}
