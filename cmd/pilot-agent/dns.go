package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/agent"
)

// dnsTimeout bounds one question to the agent; a lookup may have to wait for
// every upstream server in turn.
const dnsTimeout = 30 * time.Second

func newDNSCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the running agent what its DNS proxy answers, and why",
	}
	cmd.AddCommand(newDNSLookupCommand(e), newDNSTableCommand(e))
	return cmd
}

func newDNSLookupCommand(e *env) *cobra.Command {
	var qtype, output string
	cmd := &cobra.Command{
		Use:   "lookup NAME",
		Short: "Show what the agent would answer for a name, and where the answer comes from",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			query := url.Values{"name": {args[0]}, "type": {qtype}}
			var x dnsproxy.Explanation
			return askDNS(cmd.Context(), e.Stdout, output, agent.DebugDNSLookup+"?"+query.Encode(), &x, func(w io.Writer) {
				printExplanation(w, x)
			})
		},
	}
	cmd.Flags().StringVarP(&qtype, "type", "t", "A", "record type: A, AAAA, SRV, TXT ...")
	outputFlag(cmd, &output)
	return cmd
}

func newDNSTableCommand(e *env) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "table",
		Short: "List the names that the agent answers itself",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var hosts []dnsproxy.Host
			return askDNS(cmd.Context(), e.Stdout, output, agent.DebugDNSTable, &hosts, func(w io.Writer) {
				printHosts(w, hosts)
			})
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

func outputFlag(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "json, or nothing for text")
}

// askDNS gets path from the agent and prints it: as JSON, or decoded into v and by text.
func askDNS(ctx context.Context, out io.Writer, output, path string, v any, text func(io.Writer)) error {
	if output != "" && output != "json" {
		return &usageError{fmt.Errorf("flag --output: %q: give json, or leave it out", output)}
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	body, err := askStatus(ctx, path)
	if err != nil {
		return err
	}
	if output == "json" {
		_, err := out.Write(body)
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	text(out)
	return nil
}

// askStatus gets path from the status port of this container's own agent, or
// from localhost where there is none.
func askStatus(ctx context.Context, path string) ([]byte, error) {
	resp, err := do(ctx, agent.NewControlClient(), http.MethodGet, "http://agent"+agent.ControlStatus+path, "")
	for _, port := range []int{15020, 15021} {
		if err == nil || !errors.Is(err, agent.ErrNoAgent) {
			break
		}
		if local, localErr := do(ctx, http.DefaultClient, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", port, path), ""); localErr == nil {
			resp, err = local, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent (is it running?): %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(cmp.Or(strings.TrimSpace(string(body)), resp.Status))
	}
	return body, nil
}

func printHosts(w io.Writer, hosts []dnsproxy.Host) {
	slices.SortFunc(hosts, func(a, b dnsproxy.Host) int { return cmp.Compare(a.Name, b.Name) })
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NAME\tSOURCE\tADDRESSES")
	for _, h := range hosts {
		source := "addresses"
		if h.VIP {
			source = "VIP"
		}
		addrs := make([]string, len(h.Addrs))
		for i, a := range h.Addrs {
			addrs[i] = a.String()
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", h.Name, source, strings.Join(addrs, " "))
	}
	tw.Flush()
}

func printExplanation(w io.Writer, x dnsproxy.Explanation) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(key, value string) {
		if value != "" {
			fmt.Fprintf(tw, "%s:\t%s\n", key, value)
		}
	}
	row("question", x.Name+" "+x.Type)
	row("source", x.Source)
	row("host", x.Host)
	row("search domain", x.Search)
	row("server", x.Server)
	if x.RTTSeconds > 0 {
		row("round trip", time.Duration(x.RTTSeconds*float64(time.Second)).Round(time.Microsecond).String())
	}
	if x.RemainingTTL > 0 {
		row("cached", fmt.Sprintf("%.0f s ago, %d s left", x.AgeSeconds, x.RemainingTTL))
	}
	row("answer", x.Rcode)
	for _, r := range x.Records {
		fmt.Fprintf(tw, "\t%s\n", strings.Join(strings.Fields(r), " "))
	}
	tw.Flush()
}
