// Package screen owns how the demos in Go narrate: titles, lines below them, what commands answer, and checks.
package screen

import (
	"bufio"
	"errors"
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
	checks, failed    int
}

// shownLines is how much of an answer is shown.
const shownLines = 12

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

// Command shows a command as it would be typed.
func (s *Screen) Command(name string, arguments []string) {
	words := []string{"$", name}
	for _, a := range arguments {
		if strings.ContainsAny(a, ` {}%"|`) {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	s.Say(strings.Join(words, " "))
}

// Answer shows the first lines of what a command has said.
func (s *Screen) Answer(text string) {
	scanner := bufio.NewScanner(strings.NewReader(text))
	for n := 0; n < shownLines && scanner.Scan(); n++ {
		s.Faint("  " + scanner.Text())
	}
}

// Check says whether something is as it is told.
func (s *Screen) Check(ok bool, what string) {
	s.mu.Lock()
	s.checks++
	if !ok {
		s.failed++
	}
	s.mu.Unlock()
	if ok {
		s.Say("ok      " + what)
	} else {
		s.Strong("FAILED  " + what)
	}
}

// Closing says what came of the checks of a demo; it is an error if one has failed.
func (s *Screen) Closing(name string) error {
	s.mu.Lock()
	checks, failed := s.checks, s.failed
	s.mu.Unlock()
	s.Title("%s: %d checks, %d failed", name, checks, failed)
	if failed > 0 {
		return errors.New("FAILED")
	}
	return nil
}

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
