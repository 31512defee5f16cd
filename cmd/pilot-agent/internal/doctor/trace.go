package doctor

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/pkg/logging"
)

const traceHelp = `Follows the first packet of a connection, or a query, through the rules in force,
and prints where it lands, which rule decides, and why. Sends nothing.

FROM  uid:1000[,gid:G][,mark:M]   a process of the pod; without gid, the group of the same number
      outside[,in:eth0]           any client; 10.1.2.3 is a certain one
TO    tcp://10.1.2.3:80           tcp or udp (udp://8.8.8.8:53), and a port
      tcp://reviews.example:9080  a name, as the agent's DNS answers it, else resolv.conf
      tcp://pod:8080              the pod's own address

pilot-agent doctor trace uid:1000 tcp://reviews.example:9080
pilot-agent doctor trace outside tcp://pod:8080`

// tracedTarget is one address of TO, traced.
type tracedTarget struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Decided bool   `json:"decided"`
	inspect.Traced
	Notes []string `json:"notes,omitempty"`
}

func newTraceCommand(e *cli.Env, host iptablescmd.Host) *cobra.Command {
	var output cli.Output
	var verbose bool
	cmd := &cobra.Command{
		Use:   "trace FROM TO",
		Short: "Say where a packet lands, and which rule decides",
		Long:  traceHelp,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.Check(); err != nil {
				return err
			}
			from, err := parseTraceFrom(args[0], host)
			if err != nil {
				return &cli.UsageError{Err: fmt.Errorf("FROM: %w", err)}
			}
			to, err := parseTraceTo(args[1])
			if err != nil {
				return &cli.UsageError{Err: fmt.Errorf("TO: %w", err)}
			}
			log, err := e.Log(cmd)
			if err != nil {
				return err
			}
			s, err := readCapture(cmd.Context(), logging.For(log, "iptables"))
			if err != nil {
				return err
			}
			if err := to.resolve(cmd.Context(), traceResolver(e, host)); err != nil {
				return err
			}
			return trace(e, s, from, to, traceView{verbose, output.IsJSON()})
		},
	}
	output.AddFlag(cmd, "o")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every rule on the way, not just those that match")
	return cmd
}

type traceView struct{ all, json bool }

func trace(e *cli.Env, s *inspect.Snapshot, from traceFrom, to traceTo, v traceView) error {
	var targets []tracedTarget
	for _, a := range to.addrs {
		flow, ok := from.flow(to, a)
		if !ok { // a client of the other IP version
			continue
		}
		traced, err := s.Trace(flow, v.all)
		if err != nil {
			return err
		}
		t := tracedTarget{From: from.text, To: string(to.proto) + "://" + flow.Dst.String(), Decided: traced.Decided(), Traced: traced}
		for _, o := range traced.Outcomes {
			if heard, err := s.Hears(flow.Proto, o.Landing); err != nil {
				return err
			} else if !heard {
				t.Notes = append(t.Notes, fmt.Sprintf("nobody listens on %s port %d", flow.Proto, o.Addr.Port()))
			}
		}
		targets = append(targets, t)
	}
	if len(targets) == 0 {
		return fmt.Errorf("FROM %s and TO %s have no IP version in common", from.text, to.text)
	}
	if v.json {
		return cli.PrintJSON(e.Stdout, targets)
	}
	if to.said != "" {
		fmt.Fprintln(e.Stdout, to.said)
	}
	for _, t := range targets {
		t.print(e.Stdout, v)
	}
	return nil
}

func (t tracedTarget) print(w io.Writer, v traceView) {
	fmt.Fprintf(w, "%s -> %s\n", t.From, t.To)
	for _, text := range t.Blind {
		fmt.Fprintf(w, "  cannot be evaluated: %s\n", text)
	}
	for _, text := range t.Unseen {
		fmt.Fprintf(w, "  not seen: the rules of %s\n", text)
	}
	if !t.Decided {
		fmt.Fprintf(w, "  undecided: it depends on that\n")
	}
	for _, o := range t.Outcomes {
		if len(o.If) > 0 {
			fmt.Fprintf(w, " if %s:\n", strings.Join(o.If, ", and "))
		}
		printSteps(w, o.Steps, v)
		fmt.Fprintf(w, "  lands at %v\n", o.Landing)
		if o.Rule != nil {
			fmt.Fprintf(w, "  decided by %v\n", *o.Rule)
		}
		because := o.Reason
		if setting := iptablescmd.SettingOf(o.Purpose); setting != "" {
			because += " (" + setting + ")"
		}
		if because != "" {
			fmt.Fprintf(w, "  because: %s\n", because)
		}
	}
	for _, note := range t.Notes {
		fmt.Fprintf(w, "  note: %s\n", note)
	}
}

func printSteps(w io.Writer, steps []inspect.Step, v traceView) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range steps {
		mark := ""
		if v.all {
			mark = "no: " + s.Because + "\t"
			if s.Matched {
				mark = "yes\t"
			}
		}
		comment := ""
		if s.Comment != "" {
			comment = "\t" + s.Comment
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s%s%s\n", s.Hook, s.Table, s.Chain, mark, s.Rule, comment)
	}
	tw.Flush()
}
