package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync"
)

// ErrInterrupted is the end of a program whose context ended first.
var ErrInterrupted = errors.New("interrupted")

// shownLines is how much a program shows of a log: its end tells what went wrong.
const shownLines = 40

// Program runs f outside of a test, with a T of its own: Fatalf and Skipf end f, and are the error that
// is returned; so is a panic, with its stack. Logf writes the last lines of its text to log. What f
// has made goes before Program returns, also when ctx ends: f is not waited for then.
func Program(ctx context.Context, log io.Writer, f func(T) error) error {
	p := &program{log: log}
	done := make(chan error, 1)
	go func() {
		defer func() {
			if recovered := recover(); recovered == any(unwound{}) {
				done <- p.failure()
			} else if recovered != nil {
				done <- fmt.Errorf("panic: %v\n%s", recovered, debug.Stack())
			}
		}()
		done <- f(p)
	}()
	select {
	case err := <-done:
		p.clean()
		return err
	case <-ctx.Done():
		p.clean()
		return ErrInterrupted
	}
}

// unwound ends a program's function; the reason is in program.err.
type unwound struct{}

type program struct {
	log io.Writer

	mu       sync.Mutex
	cleanups []func()
	cleaned  bool
	err      error
}

func (p *program) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// clean runs what was registered, last first. What is registered later runs at once.
func (p *program) clean() {
	p.mu.Lock()
	cleanups := p.cleanups
	p.cleanups, p.cleaned = nil, true
	p.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
}

// Cleanup implements T.
func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	if !p.cleaned {
		p.cleanups = append(p.cleanups, f)
		f = func() {}
	}
	p.mu.Unlock()
	f()
}

// Fatalf implements T.
func (p *program) Fatalf(format string, args ...any) {
	p.mu.Lock()
	p.err = fmt.Errorf(format, args...)
	p.mu.Unlock()
	panic(unwound{})
}

// Skipf implements T: a program that cannot run has failed.
func (p *program) Skipf(format string, args ...any) { p.Fatalf(format, args...) }

// Logf implements T.
func (p *program) Logf(format string, args ...any) {
	lines := strings.Split(strings.TrimRight(fmt.Sprintf(format, args...), "\n"), "\n")
	if hidden := len(lines) - shownLines; hidden > 0 {
		lines = append([]string{lines[0], fmt.Sprintf("[%d lines]", hidden)}, lines[hidden+1:]...)
	}
	_, _ = fmt.Fprintln(p.log, strings.Join(lines, "\n"))
}

// Failed implements T.
func (p *program) Failed() bool { return p.failure() != nil }

// Helper implements T.
func (p *program) Helper() {}
