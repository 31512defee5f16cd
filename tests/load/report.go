package load

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// maxLine bounds a report's line: flows × (two histograms and 20 failures).
const maxLine = 16 << 20

// Report is what a run counted up to one moment: a line of the process's standard output.
type Report struct {
	Source   string    `json:"source,omitempty"`
	Time     time.Time `json:"time"`
	Elapsed  float64   `json:"elapsed_s"`  // seconds since the run began
	Interval float64   `json:"interval_s"` // seconds since the report before this one
	// CPU is the processor seconds of the whole process so far: near Elapsed times the processors, the
	// load generator itself is the bottleneck.
	CPU   float64      `json:"cpu_s"`
	Final bool         `json:"final"` // the run has ended; no report follows
	Flows []FlowReport `json:"flows"`
}

// FlowReport is a flow's part of a Report.
type FlowReport struct {
	Name     string    `json:"name"`
	Kind     Kind      `json:"kind"`
	Total    Counts    `json:"total"`
	Interval Counts    `json:"interval"`
	Failures []Failure `json:"failures,omitempty"` // the first 20
}

// Total is the counts of all flows since the beginning.
func (r Report) Total() Counts {
	return r.sum(func(f FlowReport) Counts { return f.Total })
}

// Last is the counts of all flows in the interval.
func (r Report) Last() Counts {
	return r.sum(func(f FlowReport) Counts { return f.Interval })
}

func (r Report) sum(of func(FlowReport) Counts) (sum Counts) {
	for _, f := range r.Flows {
		sum.Merge(of(f))
	}
	return sum
}

// Failures is the number of failed requests of all flows since the beginning.
func (r Report) Failures() uint64 { return r.Total().Failures() }

// Flow returns the report of the flow of that name; an empty one where there is none.
func (r Report) Flow(name string) FlowReport {
	for _, f := range r.Flows {
		if f.Name == name {
			return f
		}
	}
	return FlowReport{Name: name}
}

// Merge returns both reports as one: of several sources, the last report of each. Flows of the
// same name and kind are one flow in it, with the earliest failures of both. Neither is changed.
func (r Report) Merge(o Report) Report {
	merged := r
	if o.Source != "" && o.Source != r.Source {
		merged.Source = strings.TrimPrefix(r.Source+"+"+o.Source, "+")
	}
	if o.Time.After(r.Time) {
		merged.Time = o.Time
	}
	merged.Elapsed, merged.Interval = max(r.Elapsed, o.Elapsed), max(r.Interval, o.Interval)
	merged.CPU += o.CPU
	// Nothing at all is the start of a fold, and has no say.
	merged.Final = (r.Final || r.Time.IsZero()) && (o.Final || o.Time.IsZero())
	merged.Flows = slices.Clone(r.Flows)
	for _, f := range o.Flows {
		i := slices.IndexFunc(merged.Flows, func(m FlowReport) bool { return m.Name == f.Name && m.Kind == f.Kind })
		if i < 0 {
			i = len(merged.Flows)
			merged.Flows = append(merged.Flows, FlowReport{Name: f.Name, Kind: f.Kind})
		}
		merged.Flows[i] = mergeFlows(merged.Flows[i], f)
	}
	return merged
}

func mergeFlows(a, b FlowReport) FlowReport {
	merged := FlowReport{Name: a.Name, Kind: a.Kind, Failures: slices.Concat(a.Failures, b.Failures)}
	for _, f := range []FlowReport{a, b} {
		merged.Total.Merge(f.Total)
		merged.Interval.Merge(f.Interval)
	}
	slices.SortStableFunc(merged.Failures, func(x, y Failure) int { return x.Time.Compare(y.Time) })
	merged.Failures = merged.Failures[:min(len(merged.Failures), maxFailures)]
	return merged
}

// String is the closing table: a line a flow, their sum, and the first failures of each.
func (r Report) String() string {
	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "flow\tkind\tok\tfailed\tretried\topened\tended\treq/s\tp50 ms\tp99 ms\tmax ms")
	for _, f := range r.Flows {
		r.row(table, f.Name, f.Kind, f.Total)
	}
	r.row(table, "all", "", r.Total())
	_ = table.Flush() // to a strings.Builder
	if skipped := r.Total().Skipped; skipped > 0 {
		fmt.Fprintf(&out, "%d requests were never made: the rate is more than this machine can do\n", skipped)
	}
	for _, f := range r.Flows {
		for _, failure := range f.Failures {
			fmt.Fprintln(&out, failure)
		}
	}
	return out.String()
}

func (r Report) row(w io.Writer, name string, kind Kind, c Counts) {
	rate := 0.0
	if r.Elapsed > 0 {
		rate = float64(c.OK) / r.Elapsed
	}
	fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%d\t%d\t%d\t%.0f\t%.2f\t%.2f\t%.2f\n", name, kind, c.OK, failedCell(c), c.Retried, c.Opened, c.Ended, rate,
		milliseconds(c.Latency.Quantile(0.5)), milliseconds(c.Latency.Quantile(0.99)), milliseconds(c.Latency.Max()))
}

// failedCell is "0", or "3 (reset 2, eof 1)".
func failedCell(c Counts) string {
	var parts []string
	for _, class := range Classes() {
		if n := c.Failed[class]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", class, n))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", c.Failures(), strings.Join(parts, ", "))
}

// Follow yields the reports that a load process writes, as they come. It ends with the stream; a
// line that is no report, or a broken stream, is yielded as an error and is the last.
func Follow(r io.Reader) iter.Seq2[Report, error] {
	return func(yield func(Report, error) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		for lines.Scan() {
			var report Report
			if err := json.Unmarshal(lines.Bytes(), &report); err != nil {
				yield(Report{}, fmt.Errorf("read a report of the load: %.200q: %w", lines.Bytes(), err))
				return
			}
			if !yield(report, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(Report{}, fmt.Errorf("read the reports of the load: %w", err))
		}
	}
}
