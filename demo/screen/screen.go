// Package screen owns how the demos in Go narrate: titles, and lines below them.
package screen

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// Screen writes a narration, in colours where it is a terminal. Its methods may be called from several goroutines: each call's
// lines stay together.
type Screen struct {
	mu                sync.Mutex
	out               io.Writer
	bold, faint, none string // escape sequences
}

// New returns a screen that writes to out, without colours if noColor says so (https://no-color.org).
func New(out *os.File, noColor bool) *Screen {
	s := &Screen{out: out}
	if info, err := out.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 && !noColor {
		s.bold, s.faint, s.none = "\x1b[1m", "\x1b[2m", "\x1b[0m"
	}
	return s
}

// Title begins a chapter.
func (s *Screen) Title(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "\n%s%s%s\n", s.bold, fmt.Sprintf(format, args...), s.none)
}

// Say writes lines below the title.
func (s *Screen) Say(lines ...string) { s.lines("", lines) }

// Strong writes lines that stand out.
func (s *Screen) Strong(lines ...string) { s.lines(s.bold, lines) }

// Faint writes lines that stay in the background.
func (s *Screen) Faint(lines ...string) { s.lines(s.faint, lines) }

// Print writes a text of several lines as it is.
func (s *Screen) Print(text string) { s.Say(strings.Split(strings.TrimRight(text, "\n"), "\n")...) }

func (s *Screen) lines(colour string, lines []string) {
	none := s.none
	if colour == "" {
		none = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, line := range lines {
		fmt.Fprintf(s.out, "  %s%s%s\n", colour, line, none)
	}
}
