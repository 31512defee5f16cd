package control

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// OneLine makes the text of another process safe to print on one line: without line
// breaks, tabs and terminal control.
func OneLine(text string) string {
	// A byte that is no UTF-8 can mean something to whoever lays the text out: 0xff is text/tabwriter's escape.
	return strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "\ufffd"), func(r rune) bool {
		return unicode.IsSpace(r) || !unicode.IsPrint(r)
	}), " ")
}

// Briefly shows a duration in two units at most: 42s, 5m12s, 3h7m, 2d4h. A negative one is
// 0s: the clock may be set back.
func Briefly(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}
