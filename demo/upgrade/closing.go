package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"understudy.mesh/tests/load"
)

// evidenceSpan is how much of the logs before and after a failure is shown.
const evidenceSpan = 1500 * time.Millisecond

// upgradeTable has a line for each upgrade, or for many of them the quantiles.
func upgradeTable(changes []*change, l *live, summary bool) string {
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	if summary {
		fmt.Fprintln(table, "upgrades\tp50\tp99\tmax")
		quantiles(table, "process start to serving, ms", changes, func(c *change) float64 { return inMilliseconds(c.serves.Sub(c.started)) })
		quantiles(table, "old generation drained, s", changes, func(c *change) float64 { return c.stopped.Sub(c.serves).Seconds() })
	} else {
		fmt.Fprintln(table, "upgrade\tfrom\tto\tprocess start to serving\tp99 meanwhile\told generation ended after")
		for _, c := range changes {
			fmt.Fprintf(table, "%d\t%s\t%s\t%.0f ms\t%.1f ms\t%.1f s\n", c.number, name(c.old, c.from), name(c.new, c.to),
				inMilliseconds(c.serves.Sub(c.started)), inMilliseconds(l.worst(c.started, c.serves)), c.stopped.Sub(c.serves).Seconds())
		}
	}
	_ = table.Flush() // to a strings.Builder
	return out.String()
}

func quantiles(table *tabwriter.Writer, what string, changes []*change, of func(*change) float64) {
	if len(changes) == 0 {
		return
	}
	var values []float64
	for _, c := range changes {
		values = append(values, of(c))
	}
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(q*float64(len(values)-1))] }
	fmt.Fprintf(table, "%s\t%.1f\t%.1f\t%.1f\n", what, at(0.5), at(0.99), at(1))
}

// evidence shows what the agents logged around the first failure.
func (st *story) evidence(r load.Report) {
	failed := failures(r)
	if len(failed) == 0 {
		return
	}
	first := failed[0]
	from := first.Time.Add(-time.Duration(first.Milliseconds * float64(time.Millisecond)))
	st.Title("Around the first failure (%s to %s UTC)", from.UTC().Format("15:04:05.000"), first.Time.UTC().Format("15:04:05.000"))
	for _, slot := range st.pod.slots.List {
		st.Say(slot.Name + ":")
		st.Print(between(slot.Log.String(), from.Add(-evidenceSpan), first.Time.Add(evidenceSpan)))
	}
}

// between is the lines of an agent's log from one time to another.
func between(log string, from, to time.Time) string {
	var lines strings.Builder
	inside := false
	for line := range strings.Lines(log) {
		stamp, _, _ := strings.Cut(line, "\t")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err == nil {
			inside = at.After(from) && at.Before(to)
		}
		if inside {
			lines.WriteString("  " + line)
		}
	}
	return lines.String()
}

// keepLogs writes what an engineer needs into a directory that stays, where that is asked for.
func (st *story) keepLogs(r load.Report, failed bool) (err error) {
	dir := st.logs
	switch {
	case dir != "":
		err = os.MkdirAll(dir, 0o755)
	case st.soak && failed:
		dir, err = os.MkdirTemp("", "understudy-soak-")
	default:
		return nil
	}
	if err != nil {
		return err
	}
	files := map[string]string{"kubelet.log": st.pod.kubelet.Log.String(), "load.txt": r.String()}
	for _, slot := range st.pod.slots.List {
		files[slot.Name+".log"] = slot.Log.String()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	st.Say("all logs: " + dir)
	return nil
}
