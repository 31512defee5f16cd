package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
)

// result is one measured quantity of the agent, and its peer's when there is one to compare with.
type result struct {
	What      string    `json:"what"`
	Unit      string    `json:"unit"`
	Value     float64   `json:"value"` // median of Samples
	Samples   []float64 `json:"samples"`
	Reference string    `json:"reference,omitempty"`
	RefValue  float64   `json:"referenceValue,omitempty"` // median of RefSamples
	Refs      []float64 `json:"referenceSamples,omitempty"`
	Ratio     float64   `json:"ratio,omitempty"` // Value / RefValue
	// Most and MostRatio are what Value and Ratio have to keep; 0 is nothing.
	Most      float64 `json:"most,omitempty"`
	MostRatio float64 `json:"mostRatio,omitempty"`
}

// measured makes a result without a peer.
func measured(what, unit string, samples []float64) result {
	return result{What: what, Unit: unit, Value: median(samples), Samples: samples}
}

// largest shows the largest sample instead of the median.
func (r result) largest() result {
	r.Value = slices.Max(append([]float64{0}, r.Samples...))
	return r
}

// smallest shows the smallest sample instead of the median.
func (r result) smallest() result {
	if len(r.Samples) > 0 {
		r.Value = slices.Min(r.Samples)
	}
	return r
}

// against adds the peer.
func (r result) against(reference string, samples []float64) result {
	r.Reference, r.Refs, r.RefValue = reference, samples, median(samples)
	if r.RefValue != 0 {
		r.Ratio = r.Value / r.RefValue
	}
	return r
}

// atMost and ratioAtMost make a result fail that is more.
func (r result) atMost(most float64) result      { r.Most = most; return r }
func (r result) ratioAtMost(most float64) result { r.MostRatio = most; return r }

// broken is an error that names what is more than it may be.
func broken(results []result) error {
	var errs []error
	for _, r := range results {
		if r.Most != 0 && r.Value > r.Most {
			errs = append(errs, fmt.Errorf("%s: %s %s, more than %s", r.What, number(r.Value), r.Unit, number(r.Most)))
		}
		if r.MostRatio != 0 && r.Ratio > r.MostRatio {
			errs = append(errs, fmt.Errorf("%s: %.3f of %s's, more than %.3f", r.What, r.Ratio, r.Reference, r.MostRatio))
		}
	}
	return errors.Join(errs...)
}

func median(samples []float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// table renders results for a terminal.
func table(results []result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tagent\tunit\tagainst\tpeer\tratio")
	for _, r := range results {
		if r.Reference == "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t\t\t\n", r.What, number(r.Value), r.Unit)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%.2f\n", r.What, number(r.Value), r.Unit, r.Reference, number(r.RefValue), r.Ratio)
	}
	_ = w.Flush()
	return b.String()
}

// number shows three digits or so.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// writeJSON writes the results of a section with all their samples.
func writeJSON(dir, section string, results []result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the output directory: %w", err)
	}
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the results of %s: %w", section, err)
	}
	path := filepath.Join(dir, section+".json")
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the results of %s: %w", section, err)
	}
	return nil
}
