// Package dnscmd owns `pilot-agent dns`: what it asks the running agent about its DNS, and
// how it prints the answers.
package dnscmd

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/dnsproxy"
	"understudy.mesh/pkg/control"
)

// timeout bounds the look-up of one name's addresses: it may wait for one upstream server after another.
const timeout = 30 * time.Second

// New returns the command.
func New(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the running agent what its DNS proxy answers, and why",
	}
	cmd.AddCommand(
		newLookupCommand(e),
		newCommand(e, "table [NAME]", "List the names that the agent answers itself", &cli.Page{Path: control.DNSTablePath, Print: printHosts}),
		newCommand(e, "cache [NAME]", "List the content of the cache: answers, last used first, and then failures",
			&cli.Page{Path: control.DNSCachePath, Print: printCache}),
		newCommand(e, "flush [NAME]", "Remove answers and failures from the cache, so that they are asked for again",
			&cli.Page{Path: control.DNSFlushPath, Method: http.MethodPost, Print: printFlushed}),
		newCommand(e, "vips [NAME]", "List the virtual addresses that hosts have, and those that they had",
			&cli.Page{Path: control.DNSVIPsPath, Print: func(out io.Writer, in *json.Decoder) error { return vipView{time.Now()}.print(out, in) }}),
		newCommand(e, "upstreams", "List the DNS servers that the agent forwards to, and their state",
			&cli.Page{Path: control.DNSUpstreamsPath, Print: func(out io.Writer, in *json.Decoder) error { return upstreamView{time.Now()}.print(out, in) }}),
	)
	return cmd
}

func newLookupCommand(e *cli.Env) *cobra.Command {
	var qtype string
	q := &cli.Page{Path: control.DNSLookupPath, Print: printExplanation}
	cmd := newCommand(e, "lookup NAME", "Show what the agent would answer for a name, and where the answer comes from", q)
	cmd.Args = cobra.ExactArgs(1)
	cmd.PreRun = func(*cobra.Command, []string) { q.Query.Set("type", qtype) }
	cmd.Flags().StringVarP(&qtype, "type", "t", "A", "record type: A, AAAA, SRV, TXT ...")
	return cmd
}

// newCommand returns a command that asks q, of a name if its use has one.
func newCommand(e *cli.Env, use, short string, q *cli.Page) *cobra.Command {
	q.Query = url.Values{}
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	if strings.HasSuffix(use, "[NAME]") {
		cmd.Args = cobra.MaximumNArgs(1)
		cmd.Long = short + ".\nWith NAME only those whose names contain its labels: for a.example also www.a.example, and\n" +
			"a.example.svc.cluster.local, which comes of a search domain."
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			q.Query.Set("name", args[0])
		}
		return q.Ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
	}
	q.Output.AddFlag(cmd, "o")
	return cmd
}

// Addresses asks the agent for a name's addresses, as `dns lookup` does, and where they come
// from.
func Addresses(ctx context.Context, open cli.Opener, name string) (addrs []netip.Addr, source string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for _, qtype := range []string{"A", "AAAA"} {
		answer, err := open(ctx, http.MethodGet, control.DNSLookupPath+"?"+url.Values{"name": {name}, "type": {qtype}}.Encode())
		if err != nil {
			return nil, "", err
		}
		var x dnsproxy.Explanation
		err = json.NewDecoder(answer).Decode(&x)
		answer.Close()
		if err != nil {
			return nil, "", fmt.Errorf("read the agent's answer: %w", err)
		}
		for _, record := range x.Records { // name, TTL, class, type, data
			f := strings.Fields(record)
			if a, err := netip.ParseAddr(f[len(f)-1]); err == nil && slices.Contains(f, qtype) {
				addrs, source = append(addrs, a.Unmap()), cmp.Or(x.Source, "the agent")
			}
		}
	}
	return addrs, source, nil
}
