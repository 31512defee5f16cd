// Package dnscmd owns `pilot-agent dns`: questions to the running agent about its DNS, and
// how the answers are printed.
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

// timeout bounds one question to the agent; a lookup may have to wait for
// every upstream server in turn.
const timeout = 30 * time.Second

// New returns the command.
func New(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the running agent what its DNS proxy answers, and why",
	}
	cmd.AddCommand(newLookupCommand(e), newUpstreamsCommand(e), newFlushCommand(e),
		newListCommand(e, list{
			use: "table", short: "List the names that the agent answers itself",
			page: control.DNSTablePath, print: printHosts,
		}),
		newListCommand(e, list{
			use: "cache", short: "List what the cache has: answers, used last first, and then failures",
			page: control.DNSCachePath, print: printCache,
		}),
		newListCommand(e, list{
			use: "vips", short: "List the virtual addresses that hosts have, and those that hosts left",
			page: control.DNSVIPsPath, print: func(out io.Writer, in *json.Decoder) error { return vipView{time.Now()}.print(out, in) },
		}))
	return cmd
}

func newLookupCommand(e *cli.Env) *cobra.Command {
	var qtype string
	q := question{page: control.DNSLookupPath, print: printExplanation}
	cmd := &cobra.Command{
		Use:   "lookup NAME",
		Short: "Show what the agent would answer for a name, and where the answer comes from",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q.query = url.Values{"name": {args[0]}, "type": {qtype}}
			return q.ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	cmd.Flags().StringVarP(&qtype, "type", "t", "A", "record type: A, AAAA, SRV, TXT ...")
	q.output.AddFlag(cmd, "o")
	return cmd
}

func newUpstreamsCommand(e *cli.Env) *cobra.Command {
	q := question{page: control.DNSUpstreamsPath, print: func(out io.Writer, in *json.Decoder) error {
		return upstreamView{time.Now()}.print(out, in)
	}}
	cmd := &cobra.Command{
		Use:   "upstreams",
		Short: "List the DNS servers that the agent forwards to, and how they do",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return q.ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	q.output.AddFlag(cmd, "o")
	return cmd
}

func newFlushCommand(e *cli.Env) *cobra.Command {
	cmd := newListCommand(e, list{
		use: "flush", short: "Take answers and failures out of the cache, so that they are asked for anew",
		page: control.DNSFlushPath, method: http.MethodPost, print: printFlushed,
	})
	cmd.Long = cmd.Short + ".\nWith NAME only those that have its labels in their name, as dns cache NAME lists them."
	return cmd
}

// list is a command about one of the agent's lists of names.
type list struct {
	use, short, page string
	method           string // "" is GET
	print            func(io.Writer, *json.Decoder) error
}

func newListCommand(e *cli.Env, l list) *cobra.Command {
	q := question{page: l.page, method: l.method, print: l.print}
	cmd := &cobra.Command{
		Use:   l.use + " [NAME]",
		Short: l.short,
		Long: l.short + ".\nWith NAME only those that have its labels in their name: for a.example also www.a.example, and\n" +
			"a.example.svc.cluster.local, which a search domain made of it.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				q.query = url.Values{"name": args}
			}
			return q.ask(cmd.Context(), e.Client().OpenStatus, e.Stdout)
		},
	}
	q.output.AddFlag(cmd, "o")
	return cmd
}

// question is a question to one of the agent's pages about DNS.
type question struct {
	page   string
	method string // "" is GET
	query  url.Values
	output cli.Output
	// print writes the page for people. It need not hold all of it.
	print func(io.Writer, *json.Decoder) error
}

// Opener is [control.Client.OpenStatus].
type Opener func(ctx context.Context, method, path string) (io.ReadCloser, error)

// ask opens the page and prints it as it comes.
func (q question) ask(ctx context.Context, open Opener, out io.Writer) error {
	if err := q.output.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	path := q.page
	if len(q.query) > 0 {
		path += "?" + q.query.Encode()
	}
	answer, err := open(ctx, cmp.Or(q.method, http.MethodGet), path)
	if err != nil {
		return err
	}
	defer answer.Close()
	if q.output.IsJSON() {
		_, err = io.Copy(out, answer)
	} else {
		err = q.print(out, json.NewDecoder(answer))
	}
	if err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}

// Addresses asks the agent as `dns lookup` does.
func Addresses(ctx context.Context, open Opener, name string) (addrs []netip.Addr, source string, err error) {
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
