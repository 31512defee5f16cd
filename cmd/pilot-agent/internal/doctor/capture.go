package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables"
	"understudy.mesh/pkg/logging"
)

const captureHelp = `Compares the rules in force with those that istio-iptables would make of the same
flags and environment, in every back end and for IPv4 and IPv6, and prints what
differs: exit status 0 when nothing does, else 1.

Without any of them, as in an ephemeral container, says what the rules in force
capture, and checks that they are complete: nothing of such a set missing or
doubled, nobody else's rule in the way, somebody listening where traffic is sent.
Needs uid 0 with NET_ADMIN and NET_RAW, and changes nothing.`

// captureReport is what doctor capture says, as JSON.
type captureReport struct {
	Right       bool                  `json:"right"`
	ComparedTo  string                `json:"comparedTo"` // flags, or the rules themselves
	Captures    []string              `json:"captures,omitempty"`
	Unseen      []string              `json:"notSeen,omitempty"` // whose rules are not readable here
	Differences []iptables.Difference `json:"differences"`
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
		c := check{json: output.IsJSON(), alone: !iptablescmd.Given(cmd.Flags(), e.Environ)}
		return c.run(cmd.Context(), o, e.Stdout, logging.For(log, "iptables"))
	}
	return cmd
}

// Check compares what is in force with what the options ask for.
func Check(ctx context.Context, o *iptablescmd.Options, stdout io.Writer, log *slog.Logger) error {
	return check{}.run(ctx, o, stdout, log)
}

// check is how the rules in force are checked and reported.
type check struct {
	json  bool
	alone bool // there is no configuration to compare them with
}

// run compares what is in force with o, or else with the configuration that it shows.
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
	if k.alone { // a pod that starts has no listeners yet, and one that runs has
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
			r.Differences = []iptables.Difference{}
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

// maxAlike is how many differences of one kind in one chain are printed one by one.
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
	type alike struct {
		kind          iptables.Kind
		family, chain string
		table         iptables.Table
		why           string
	}
	count := map[alike]int{}
	for i, d := range r.Differences {
		key := alike{d.Kind, d.Family, d.Chain, d.Table, d.Why}
		if count[key]++; count[key] <= maxAlike {
			fmt.Fprintln(w, d.Text)
		}
		last := i == len(r.Differences)-1 || key != func(n iptables.Difference) alike {
			return alike{n.Kind, n.Family, n.Chain, n.Table, n.Why}
		}(r.Differences[i+1])
		if more := count[key] - maxAlike; last && more > 0 {
			fmt.Fprintf(w, "  and %d more like it (--output json has them all)\n", more)
		}
	}
}

// describeCapture says what a configuration captures.
func describeCapture(c iptables.Config) []string {
	families := "IPv4"
	if c.IPv6 {
		families = "IPv4 and IPv6"
	}
	lines := []string{fmt.Sprintf("outbound (%s): %s", families, describeOutbound(c))}
	if skip := outboundExceptions(c); skip != "" {
		lines = append(lines, "  but not "+skip)
	}
	how := "REDIRECT"
	if c.TPROXY {
		how = fmt.Sprintf("TPROXY, mark %#x, route table %d", c.Mark, c.RouteTable)
	}
	in := "nothing"
	switch {
	case c.InboundPorts.All:
		in = "TCP to every port"
		if len(c.ExcludeInboundPorts) > 0 {
			in += " but " + enumerate(c.ExcludeInboundPorts)
		}
	case len(c.InboundPorts.List) > 0:
		in = "TCP to ports " + enumerate(c.InboundPorts.List)
	}
	if in != "nothing" {
		in += fmt.Sprintf(" -> Envoy, port %d, by %s; never port %d", c.InboundPort, how, c.TunnelPort)
	}
	lines = append(lines, "inbound: "+in)
	dns := "not captured"
	switch {
	case c.DNS.Capture && c.DNS.All:
		dns = "queries to every server -> the agent, port 15053"
	case c.DNS.Capture:
		dns = "queries to " + enumerate(c.DNS.Servers) + " -> the agent, port 15053"
	}
	return append(lines, "DNS: "+dns)
}

func describeOutbound(c iptables.Config) string {
	var to []string
	if c.IncludeCIDRs.All {
		to = append(to, "every destination")
	} else if len(c.IncludeCIDRs.List) > 0 {
		to = append(to, enumerate(c.IncludeCIDRs.List))
	}
	if len(c.IncludeOutboundPorts) > 0 {
		to = append(to, "ports "+enumerate(c.IncludeOutboundPorts))
	}
	if len(to) == 0 {
		return "nothing"
	}
	return fmt.Sprintf("TCP to %s -> Envoy, port %d", strings.Join(to, " and "), c.ProxyPort)
}

func outboundExceptions(c iptables.Config) string {
	var out []string
	add := func(n int, text string) {
		if n > 0 {
			out = append(out, text)
		}
	}
	var proxy []string
	if len(c.UIDs) > 0 {
		proxy = append(proxy, "uid "+enumerate(c.UIDs))
	}
	if len(c.GIDs) > 0 {
		proxy = append(proxy, "gid "+enumerate(c.GIDs))
	}
	if c.ProxyMark != 0 {
		proxy = append(proxy, fmt.Sprintf("mark %#x", c.ProxyMark))
	}
	add(len(proxy), "from the proxy ("+strings.Join(proxy, "; ")+")")
	add(len(c.ExcludeOutboundPorts), "to ports "+enumerate(c.ExcludeOutboundPorts))
	add(len(c.ExcludeCIDRs), "to "+enumerate(c.ExcludeCIDRs))
	add(len(c.ExcludeInterfaces), "on interfaces "+enumerate(c.ExcludeInterfaces))
	add(len(c.IncludeGroups), "from groups other than "+enumerate(c.IncludeGroups))
	add(len(c.ExcludeGroups), "from groups "+enumerate(c.ExcludeGroups))
	return strings.Join(out, "; ")
}

// enumerate shows items between commas, the first ten of many.
func enumerate[T any](items []T) string {
	const shown = 10
	var out []string
	for i, item := range items {
		if i == shown {
			out = append(out, fmt.Sprintf("and %d more", len(items)-i))
			break
		}
		out = append(out, fmt.Sprint(item))
	}
	return strings.Join(out, ", ")
}
