package dnscmd

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/control"
)

func printHosts(w io.Writer, in *json.Decoder) error {
	r := cli.NewTable(w, "NAME", "SOURCE", "ADDRESSES")
	err := cli.Each(in, func(h table.Host) {
		source := "addresses"
		switch {
		case h.VIP:
			source = "VIP"
		case h.Forwarded:
			source = "upstream"
		}
		r.Add(h.Name, source, cmp.Or(join(h.Addrs), "-"))
	})
	return cmp.Or(err, r.End())
}

func join(addrs []netip.Addr) string {
	text := make([]string, len(addrs))
	for i, a := range addrs {
		text[i] = a.String()
	}
	return strings.Join(text, " ")
}

func printCache(w io.Writer, in *json.Decoder) error {
	r := cli.NewTable(w, "NAME", "TYPE", "FLAGS", "ANSWER", "STATE", "LEFT", "HITS", "BYTES", "SERVER")
	err := cli.Each(in, func(c cache.Entry) {
		state := "fresh"
		switch {
		case c.Failure:
			state = "failure"
		case c.Stale:
			state = "stale"
		}
		r.Add(c.Name, c.Type, strings.Join(c.Flags, ","), c.Rcode, state, inSeconds(c.RemainingSeconds),
			strconv.FormatUint(uint64(c.Hits), 10), strconv.Itoa(c.Bytes), c.Server)
	})
	return cmp.Or(err, r.End())
}

// inSeconds shows a number of seconds as [control.Briefly] does.
func inSeconds(s float64) string { return control.Briefly(time.Duration(s * float64(time.Second))) }

// vipView prints the pool of VIPs at a moment.
type vipView struct{ now time.Time }

// print reads what [control.DNSVIPsPath] answers.
func (v vipView) print(w io.Writer, in *json.Decoder) error {
	var pool vip.Stats
	r := cli.NewTable(w, "HOST", "ADDRESSES", "STATE")
	if err := cli.Expect(in, '{'); err != nil {
		return err
	}
	for in.More() {
		var err error
		switch key, _ := in.Token(); key {
		case "pool":
			err = in.Decode(&pool)
		case "vips":
			err = cli.Each(in, func(a vip.VIP) { r.Add(a.Host, join(a.Addrs), v.state(a)) })
		default: // of a later release
			err = in.Decode(new(json.RawMessage))
		}
		if err != nil {
			return err
		}
	}
	if err := cmp.Or(cli.Expect(in, '}'), r.End()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nUsed: %d of %d. Kept back, as their host left: %d.\n", pool.Assigned, pool.Capacity, pool.Quarantined)
	if err == nil && pool.Pending > 0 {
		_, err = fmt.Fprintf(w, "Hosts that got none, as none is left: %d.\n", pool.Pending)
	}
	return err
}

// state is how long a host has had its addresses, or when another may get them.
func (v vipView) state(a vip.VIP) string {
	switch {
	case a.Freed.IsZero() && a.Since.IsZero():
		return "used"
	case a.Freed.IsZero():
		return "used for " + control.Briefly(v.now.Sub(a.Since))
	case a.Usable.After(v.now):
		return fmt.Sprintf("left %s ago, for others in %s", control.Briefly(v.now.Sub(a.Freed)), control.Briefly(a.Usable.Sub(v.now)))
	}
	return fmt.Sprintf("left %s ago, for others now", control.Briefly(v.now.Sub(a.Freed)))
}

// upstreamView prints the upstream servers at a moment.
type upstreamView struct{ now time.Time }

func (v upstreamView) print(w io.Writer, in *json.Decoder) error {
	r := cli.NewTable(w, "SERVER", "STATE", "IN USE", "REQUESTS", "FAILURES", "HEDGES", "OVERTAKEN", "LATENCY", "LAST ERROR")
	err := cli.Each(in, func(u upstream.Stats) {
		use, latency, last := "no", "", u.Error
		if u.InUse {
			use = "yes"
		}
		if u.RTT > 0 {
			latency = u.RTT.Round(time.Microsecond).String()
		}
		if last != "" && !u.ErrorAt.IsZero() {
			last = fmt.Sprintf("%s ago: %s", control.Briefly(v.now.Sub(u.ErrorAt)), last)
		}
		r.Add(u.Server.String(), u.State, use, count(u.Requests), count(u.Failures), count(u.Hedges), count(u.Overtaken), latency, last)
	})
	return cmp.Or(err, r.End())
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

func printExplanation(w io.Writer, in *json.Decoder) error {
	var x dnsproxy.Explanation
	if err := in.Decode(&x); err != nil {
		return err
	}
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
	return tw.Flush()
}

// printFlushed writes how many answers dns flush removed.
func printFlushed(out io.Writer, in *json.Decoder) error {
	var flushed struct{ Flushed int }
	if err := in.Decode(&flushed); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "Taken out of the cache: %d.\n", flushed.Flushed)
	return err
}
