package overview

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"understudy.mesh/pkg/control"
)

// WriteText writes it for a terminal.
func (o Overview) WriteText(w io.Writer, now time.Time) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, control.OneLine(o.headline().text))
	for _, s := range o.sections(now) {
		fmt.Fprintf(out, "\n%s\n", s.title)
		for _, l := range s.lines {
			fmt.Fprintf(out, "  %s\n", control.OneLine(l.text))
		}
		if len(s.rows) == 0 {
			continue
		}
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintf(table, "  %s\n", strings.Join(s.head, "\t"))
		for _, r := range s.rows {
			cells := make([]string, len(r.cells))
			for i, c := range r.cells {
				cells[i] = cmp.Or(control.OneLine(c), "-")
			}
			fmt.Fprintf(table, "  %s\n", strings.Join(cells, "\t"))
		}
		table.Flush() // to out, whose error is sticky
	}
	return out.Flush()
}
