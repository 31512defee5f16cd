package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"understudy.mesh/pkg/control"
)

// Output is the value of --output.
type Output string

// AddFlag gives a command --output, with a shorthand or "".
func (o *Output) AddFlag(cmd *cobra.Command, shorthand string) {
	cmd.Flags().StringVarP((*string)(o), "output", shorthand, "table", "table or json")
	CompleteFlag(cmd, "output", "table", "json")
}

// Check refuses other values than table and json; "" is a table, as in earlier releases.
func (o Output) Check() error {
	if o == "" || o == "table" || o == "json" {
		return nil
	}
	return &UsageError{fmt.Errorf("flag --output: %q: give table or json", string(o))}
}

// IsJSON reports whether JSON is wanted, not a table.
func (o Output) IsJSON() bool { return o == "json" }

// CompleteFlag lets the shell complete the values of a flag. An error is a flag that the
// command does not have, which the tests of completion show.
func CompleteFlag(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// PrintJSON prints a value as indented JSON.
func PrintJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// blockRows is how many rows of a table are laid out together. It bounds the memory for a
// list of any length; the next rows may have other column widths.
const blockRows = 1000

// Table writes rows in columns.
type Table struct {
	tw *tabwriter.Writer
	n  int
}

// NewTable returns a table and writes the names of its columns.
func NewTable(w io.Writer, head ...string) *Table {
	t := &Table{tw: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.Add(head...)
	return t
}

// Add writes a row; "" is shown as "-".
func (t *Table) Add(cells ...string) {
	for i := range cells {
		cells[i] = cmp.Or(control.OneLine(cells[i]), "-")
	}
	fmt.Fprintln(t.tw, strings.Join(cells, "\t"))
	if t.n++; t.n%blockRows == 0 {
		t.tw.Flush()
	}
}

// End writes the rows that are still buffered.
func (t *Table) End() error { return t.tw.Flush() }
