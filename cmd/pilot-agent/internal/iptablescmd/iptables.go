// Package iptablescmd owns the command istio-iptables: its flags and environment, what they
// mean together, and the work that they ask for.
package iptablescmd

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/rule"
	"understudy.mesh/pkg/logging"
)

// Check compares the rules in force with what the options ask for, for --verify.
type Check func(ctx context.Context, o *Options, stdout io.Writer, log *slog.Logger) error

// New returns the command istio-iptables.
func New(e *cli.Env, host Host, check Check) *cobra.Command {
	return newCommand(e, host, check, &cobra.Command{
		Use:   "istio-iptables",
		Short: "Make the pod's traffic go through the proxy, by iptables rules in this network namespace",
		Long: "Makes the rules that send the pod's traffic to the proxy and its DNS queries to the agent. It replaces\n" +
			"rules of another configuration, Istio's own included; running it again changes nothing.\n" +
			"Every flag can also be given as the environment variable beside it; the flag wins. A value \"@FILE\" is read\n" +
			"from that file, with one item a line or commas between them: an argument can have at most 128 KiB.",
	})
}

// NewClean returns the command istio-clean-iptables.
func NewClean(e *cli.Env, host Host, check Check) *cobra.Command {
	cmd := newCommand(e, host, check, &cobra.Command{
		Use:   "istio-clean-iptables",
		Short: "Remove everything that istio-iptables has made, whatever its flags were",
	})
	cleanup := cmd.Flags().Lookup(cleanupFlag)
	cleanup.DefValue = "true"
	if err := cleanup.Value.Set("true"); err != nil {
		panic(err) // a boolean takes "true"
	}
	return cmd
}

// shortLife is the garbage collector's percentage. The process lives for a tenth of a
// second; with 5,000 CIDRs the usual 100 would take a quarter of that.
const shortLife = 400

// newCommand gives cmd the flags of istio-iptables and the work behind them.
func newCommand(e *cli.Env, host Host, check Check, cmd *cobra.Command) *cobra.Command {
	cmd.Args = cobra.NoArgs
	cmd.Flags().SortFlags = false
	AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		defer debug.SetGCPercent(debug.SetGCPercent(shortLife))
		o, err := Parse(cmd.Flags(), e.Environ, host)
		if err != nil {
			return err
		}
		log, err := e.Log(cmd)
		if err != nil {
			return err
		}
		log = logging.For(log, "iptables")
		for _, what := range o.ineffective {
			log.Warn(what)
		}
		leave, err := o.Enter()
		if err != nil {
			return err
		}
		defer leave()
		if o.verify {
			return check(cmd.Context(), o, e.Stdout, log)
		}
		return o.run(cmd.Context(), e.Stdout, log)
	}
	return cmd
}

// exitValidation is Istio's exit status for rules that are not in force.
const exitValidation = 126

func (o *Options) run(ctx context.Context, stdout io.Writer, log *slog.Logger) error {
	if o.Cleanup && o.dryRun {
		return nil
	}
	if o.Cleanup {
		return iptables.Clean(ctx, log)
	}
	if err := o.Complete(log); err != nil {
		return err
	}
	if o.dryRun {
		return o.print(stdout)
	}
	if o.skipApply {
		log.Info("rules are not applied, as --skip-rule-apply asks")
	} else if err := iptables.Apply(ctx, o.Config, log); err != nil {
		return err
	}
	if !o.validate {
		return nil
	}
	if err := inspect.Probe(ctx, o.Config, o.probePort, o.probeTimeout, log); err != nil {
		return &cli.StatusError{Status: exitValidation, Err: err}
	}
	return nil
}

// print writes the input of iptables-restore and ip6tables-restore, or nft, for a pod
// without rules, to w and to the file that DRY_RUN_FILE_PATH names. What is done without a
// rule is a comment in it.
func (o *Options) print(w io.Writer) error {
	text := o.script()
	for _, command := range iptables.Commands(o.Config) {
		text += "# " + command + "\n"
	}
	if o.dryRunFile != "" {
		if err := os.WriteFile(o.dryRunFile, []byte(text), 0o644); err != nil {
			return fmt.Errorf("env DRY_RUN_FILE_PATH: write the dry run: %w", err)
		}
	}
	_, err := io.WriteString(w, text)
	return err
}

// script returns the rules as input of the programs that a person would use.
func (o *Options) script() string {
	rules := iptables.Rules(o.Config)
	if o.Config.Backend == rule.Native {
		return "# nft -f -\n" + string(iptables.RenderNative(rules))
	}
	text := "# iptables-restore --noflush\n" + string(iptables.Render(rules, rule.IPv4))
	if o.Config.IPv6 {
		text += "# ip6tables-restore --noflush\n" + string(iptables.Render(rules, rule.IPv6))
	}
	return text
}
