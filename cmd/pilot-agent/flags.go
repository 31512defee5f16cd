package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
)

// knownArgs returns the arguments without the flags that root and `proxy` do not know, and
// warns of these once: manifests may have flags of other releases, and Istio ignores
// unknown flags too. Other commands refuse them.
func knownArgs(e *cli.Env, root *cobra.Command) []string {
	if len(e.Args) > 0 && (e.Args[0] == cobra.ShellCompRequestCmd || e.Args[0] == cobra.ShellCompNoDescRequestCmd) {
		return e.Args // completion: the arguments are those of another command line
	}
	cmd, _, err := root.Find(e.Args)
	if err != nil || (cmd != root && cmd.Name() != "proxy") {
		return e.Args
	}
	cmd.InitDefaultHelpFlag()
	flags := pflag.NewFlagSet("known", pflag.ContinueOnError)
	flags.AddFlagSet(cmd.Flags())
	flags.AddFlagSet(root.PersistentFlags())
	known, unknown := splitUnknown(flags, e.Args)
	if len(unknown) > 0 {
		e.Warn("command line: unknown flags, ignored: %s", strings.Join(unknown, " "))
	}
	return known
}

// splitUnknown returns args without unknown flags, and the names of these. A word after an
// unknown flag is its value, as for Istio's agent, unless it is a role: an unknown flag may
// be a boolean one.
func splitUnknown(flags *pflag.FlagSet, args []string) (known, unknown []string) {
	known = []string{} // not nil: cobra would take os.Args instead
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(known, args[i:]...), unknown
		}
		if len(arg) < 2 || arg[0] != '-' {
			known = append(known, arg)
			continue
		}
		name, _, hasValue := strings.Cut(arg, "=")
		flag := flagNamed(flags, name)
		next := i+1 < len(args) && !hasValue
		switch {
		case flag == nil:
			unknown = append(unknown, name)
			if next && isValue(args[i+1]) {
				i++
			}
		case next && flag.NoOptDefVal == "" && takesNext(name):
			known = append(known, arg, args[i+1])
			i++
		default:
			known = append(known, arg)
		}
	}
	return known, unknown
}

// flagNamed finds "--name", or "-n" and "-nvalue" by their first letter.
func flagNamed(flags *pflag.FlagSet, name string) *pflag.Flag {
	if long, ok := strings.CutPrefix(name, "--"); ok {
		return flags.Lookup(long)
	}
	if len(name) < 2 {
		return nil
	}
	return flags.ShorthandLookup(name[1:2])
}

// takesNext reports whether the value of a flag that needs one is the next argument: that
// of "-nvalue" is not.
func takesNext(name string) bool {
	return strings.HasPrefix(name, "--") || len(name) == 2
}

func isValue(arg string) bool {
	roles := []string{string(config.Sidecar), string(config.Router)}
	return !strings.HasPrefix(arg, "-") && !slices.Contains(roles, arg)
}
