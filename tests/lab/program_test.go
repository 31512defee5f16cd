package lab

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

// TestProgram demands that a program cleans up, last first, however it ends.
func TestProgram(t *testing.T) {
	interrupted, interrupt := context.WithCancel(t.Context())
	blocked := make(chan struct{})
	defer close(blocked)
	wrong := errors.New("wrong")
	for name, tc := range map[string]struct {
		ctx context.Context
		f   func(T) error
		err string
	}{
		"done":        {t.Context(), func(T) error { return nil }, ""},
		"error":       {t.Context(), func(T) error { return wrong }, "wrong"},
		"failed":      {t.Context(), func(t T) error { t.Fatalf("no %s", "luck"); return nil }, "no luck"},
		"skipped":     {t.Context(), func(t T) error { t.Skipf("no %s", "root"); return nil }, "no root"},
		"panic":       {t.Context(), func(T) error { panic(wrong) }, "panic: wrong"},
		"interrupted": {interrupted, func(T) error { interrupt(); <-blocked; return nil }, ErrInterrupted.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			var order []string
			err := Program(tc.ctx, io.Discard, func(t T) error {
				t.Cleanup(func() { order = append(order, "first") })
				t.Cleanup(func() { order = append(order, "second") })
				return tc.f(t)
			})
			if !slices.Equal(order, []string{"second", "first"}) {
				t.Errorf("cleaned up %q", order)
			}
			if got := ""; err != nil {
				if got, _, _ = strings.Cut(err.Error(), "\n"); got != tc.err {
					t.Errorf("error %q, want %q", got, tc.err)
				}
			} else if tc.err != "" {
				t.Errorf("no error, want %q", tc.err)
			}
		})
	}
}

// TestProgramLogsTheEnd of a long text, with its first line.
func TestProgramLogsTheEnd(t *testing.T) {
	var out strings.Builder
	_ = Program(t.Context(), &out, func(t T) error {
		t.Logf("head\n%slast\n", strings.Repeat("line\n", 1000))
		return nil
	})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if lines[0] != "head" || lines[len(lines)-1] != "last" || len(lines) > shownLines+2 {
		t.Errorf("%d lines: %.200q", len(lines), out.String())
	}
}
