// Package logging owns the form of the process's log: one record is one line, in
// Istio's order of columns or as JSON, and each scope has its own level. It owns no
// descriptor: the caller gives the writer and closes it.
package logging

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
)

// scopeKey is the attribute that carries a record's scope: the name of the package
// that logs. It is printed in a column of its own and selects the level.
const scopeKey = "scope"

// Options is the form of a log.
type Options struct {
	JSON   bool   // one JSON object a line instead of tab-separated columns
	Levels Levels // per-scope levels; the zero value prints info and above
}

// New returns a logger that writes to w. Writes are whole lines, one at a time.
func New(w io.Writer, o Options) *slog.Logger {
	return slog.New(&handler{out: &output{w: w}, json: o.JSON, levels: o.Levels})
}

// For returns l with its scope set to the name of a package, for example "dnsproxy".
func For(l *slog.Logger, scope string) *slog.Logger { return l.With(scopeKey, scope) }

// handler is a slog.Handler that prints one line a record.
type handler struct {
	out    *output
	json   bool
	levels Levels
	scope  string
	prefix string      // open groups, each with its dot
	attrs  []slog.Attr // flattened, prefixed
}

// output is shared by every handler derived from that of one New.
type output struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
}

// Enabled implements slog.Handler: it asks the level of the handler's scope. A scope
// given only in a record's own attributes does not choose the level; give it by For.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.levels.level(h.scope)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		next.add(a)
	}
	return &next
}

// WithGroup implements slog.Handler: later keys get "name." in front.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	next := *h
	next.prefix += name + "."
	return &next
}

// add takes one attribute in: the scope apart, everything else flattened.
func (h *handler) add(a slog.Attr) {
	if a.Key == scopeKey && h.prefix == "" {
		h.scope = a.Value.Resolve().String()
		return
	}
	h.attrs = flatten(h.attrs, h.prefix, a)
}

// flatten appends a to attrs with groups turned into dotted keys, as both formats
// print one level only.
func flatten(attrs []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		if a.Key == "" && v.Any() == nil { // slog: an empty Attr is ignored
			return attrs
		}
		return append(attrs, slog.Attr{Key: prefix + a.Key, Value: v})
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, member := range v.Group() {
		attrs = flatten(attrs, prefix, member)
	}
	return attrs
}

// Handle implements slog.Handler. The error is the writer's.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := *h
	line.attrs = slices.Clip(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		line.add(a)
		return true
	})
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	b := h.out.buf[:0]
	if h.json {
		b = line.appendJSON(b, r)
	} else {
		b = line.appendText(b, r)
	}
	h.out.buf = b
	_, err := h.out.w.Write(b)
	return err
}
