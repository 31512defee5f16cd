// Package terminal owns what is particular about an output that a person looks at.
package terminal

import (
	"io"
	"os"
	"strings"
	"unicode"
)

// Is reports whether somebody looks at what is written.
func Is(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// Printable is a text without what a terminal would obey: it may be of a pod, which may be anybody's.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return '?'
		}
		return r
	}, text)
}
