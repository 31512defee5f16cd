package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/pkg/logging"
)

const captureHelp = `Compares the rules in force with those that istio-iptables would make of the same
flags and environment, in every back end, for IPv4 and IPv6, and prints the
differences: exit status 0 if there are none, else 1.
Without flags and environment, as in an ephemeral container, prints what the rules
in force capture, and checks that they are complete: that no rule of such a set is
missing or doubled, that no other rule is in the way, and that a process listens
where traffic is sent.
Needs uid 0 with NET_ADMIN and NET_RAW, and changes nothing.`

// errNotRight ends a check that has found a difference: exit status 1.
var errNotRight = errors.New("capture is not as it should be")

// captureReport is the result of doctor capture, also as JSON.
type captureReport struct {
	Right       bool                 `json:"right"`
	ComparedTo  string               `json:"comparedTo"` // flags, or the rules themselves
	Captures    []string             `json:"captures,omitempty"`
	Unseen      []string             `json:"notSeen,omitempty"` // whose rules are not readable here
	Differences []inspect.Difference `json:"differences"`
}

func newCaptureCommand(e *cli.Env, host iptablescmd.Host) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use:   "capture [istio-iptables' flags]",
		Short: "Compare what is captured with what should be",
		Long:  captureHelp,
		Args:  cobra.NoArgs,
	}
	cmd.Flags().SortFlags = false
	output.AddFlag(cmd, "")
	cmd.Flags().Lookup("output").Usage += " (-o is istio-iptables' own)"
	iptablescmd.AddFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := output.Check(); err != nil {
			return err
		}
		o, err := iptablescmd.Parse(cmd.Flags(), e.Environ, host)
		if err != nil {
			return err
		}
		if o.Cleanup {
			return &cli.UsageError{Err: errors.New("flag --cleanup-only: there is no configuration to compare with")}
		}
		log, err := e.Log(cmd)
		if err != nil {
			return err
		}
		leave, err := o.Enter()
		if err != nil {
			return err
		}
		defer leave()
		c := check{json: output.IsJSON(), alone: !o.Given}
		return c.run(cmd.Context(), o, e.Stdout, logging.For(log, "iptables"))
	}
	return cmd
}

// Check compares what is in force with what the options ask for.
func Check(ctx context.Context, o *iptablescmd.Options, stdout io.Writer, log *slog.Logger) error {
	return check{}.run(ctx, o, stdout, log)
}

// check is how the rules in force are compared and reported.
type check struct {
	json  bool
	alone bool // without a configuration to compare them with
}

// run compares the rules in force with o, or alone with the configuration that they show.
func (k check) run(ctx context.Context, o *iptablescmd.Options, stdout io.Writer, log *slog.Logger) error {
	if !k.alone {
		if err := o.Complete(log); err != nil {
			return err
		}
	}
	s, err := readCapture(ctx, log)
	if err != nil {
		return err
	}
	r, c := captureReport{ComparedTo: "flags and environment"}, o.Config
	if k.alone {
		var ok bool
		if c, ok = s.Infer(); !ok {
			return errors.New("nothing is captured: there are no rules of istio-iptables in this network namespace, neither of this release nor of Istio's: did the pod's init container run?")
		}
		r = captureReport{ComparedTo: "the rules themselves", Captures: describeCapture(c)}
	}
	if r.Differences, err = s.Verify(c); err != nil {
		return err
	}
	if k.alone { // the pod runs, and has its listeners; one that starts has none yet
		unheard, err := s.Unheard(c)
		if err != nil {
			return err
		}
		r.Differences = append(r.Differences, unheard...)
	}
	if r.Unseen, err = s.Unseen(); err != nil {
		return err
	}
	return r.write(stdout, k.json)
}

func (r captureReport) write(w io.Writer, asJSON bool) error {
	r.Right = len(r.Differences) == 0
	if asJSON {
		if r.Differences == nil {
			r.Differences = []inspect.Difference{}
		}
		if err := cli.PrintJSON(w, r); err != nil {
			return err
		}
	} else {
		r.print(w)
	}
	if !r.Right {
		return fmt.Errorf("%w; differences from %s: %d", errNotRight, r.ComparedTo, len(r.Differences))
	}
	return nil
}

// maxAlike is how many differences of one kind in one chain are printed.
const maxAlike = 5

func (r captureReport) print(w io.Writer) {
	for _, line := range r.Captures {
		fmt.Fprintln(w, line)
	}
	for _, text := range r.Unseen {
		fmt.Fprintf(w, "not seen, and may take packets: the rules of %s\n", text)
	}
	if r.Right {
		fmt.Fprintf(w, "right: no difference from %s\n", r.ComparedTo)
	}
	kind := func(d inspect.Difference) string { return fmt.Sprintln(d.Kind, d.Family, d.Table, d.Chain, d.Why) }
	count := map[string]int{}
	for i, d := range r.Differences {
		key := kind(d)
		if count[key]++; count[key] <= maxAlike {
			fmt.Fprintln(w, d.Text)
		}
		last := i == len(r.Differences)-1 || key != kind(r.Differences[i+1])
		if more := count[key] - maxAlike; last && more > 0 {
			fmt.Fprintf(w, "  and %d more like it (--output json has them all)\n", more)
		}
	}
}

// readCapture reads the rules in force, which needs privileges.
func readCapture(ctx context.Context, log *slog.Logger) (*inspect.Snapshot, error) {
	s, err := inspect.Read(ctx, log)
	if err != nil {
		return nil, fmt.Errorf("%w (an ephemeral container: from this agent's image, which has iptables, by kubectl debug --profile=netadmin, as user 0)", err)
	}
	return s, nil
}
