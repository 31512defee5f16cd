package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/control"
)

// dnsTimeout bounds one question to the agent; a lookup may have to wait for
// every upstream server in turn.
const dnsTimeout = 30 * time.Second

func newDNSCommand(e *cli.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dns",
		Short: "Ask the running agent what its DNS proxy answers, and why",
	}
	cmd.AddCommand(newDNSLookupCommand(e), newDNSUpstreamsCommand(e), newDNSFlushCommand(e),
		newDNSListCommand(e, dnsList{
			use: "table", short: "List the names that the agent answers itself",
			page: control.DNSTablePath, print: printHosts,
		}),
		newDNSListCommand(e, dnsList{
			use: "cache", short: "List what the cache has: answers, used last first, and then failures",
			page: control.DNSCachePath, print: printCache,
		}),
		newDNSListCommand(e, dnsList{
			use: "vips", short: "List the virtual addresses that hosts have, and those that hosts left",
			page: control.DNSVIPsPath, print: func(out io.Writer, in *json.Decoder) error { return vipView{time.Now()}.print(out, in) },
		}))
	return cmd
}

func newDNSLookupCommand(e *cli.Env) *cobra.Command {
	var qtype string
	q := dnsQuestion{page: control.DNSLookupPath, print: printExplanation}
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

func newDNSUpstreamsCommand(e *cli.Env) *cobra.Command {
	q := dnsQuestion{page: control.DNSUpstreamsPath, print: func(out io.Writer, in *json.Decoder) error {
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

func newDNSFlushCommand(e *cli.Env) *cobra.Command {
	cmd := newDNSListCommand(e, dnsList{
		use: "flush", short: "Take answers and failures out of the cache, so that they are asked for anew",
		page: control.DNSFlushPath, method: http.MethodPost, print: printFlushed,
	})
	cmd.Long = cmd.Short + ".\nWith NAME only those that have its labels in their name, as dns cache NAME lists them."
	return cmd
}

// dnsList is a command about one of the agent's lists of names.
type dnsList struct {
	use, short, page string
	method           string // "" is GET
	print            func(io.Writer, *json.Decoder) error
}

func newDNSListCommand(e *cli.Env, l dnsList) *cobra.Command {
	q := dnsQuestion{page: l.page, method: l.method, print: l.print}
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

// dnsQuestion is a question to one of the agent's pages about DNS.
type dnsQuestion struct {
	page   string
	method string // "" is GET
	query  url.Values
	output cli.Output
	// print writes the page for people. It need not hold all of it.
	print func(io.Writer, *json.Decoder) error
}

// opener is [control.Client.OpenStatus].
type opener func(ctx context.Context, method, path string) (io.ReadCloser, error)

// ask opens the page and prints it as it comes.
func (q dnsQuestion) ask(ctx context.Context, open opener, out io.Writer) error {
	if err := q.output.Check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
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
