package logging

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// timeLayout is RFC 3339 in UTC with microseconds, the column that Istio's agent and
// Envoy's log format print.
const timeLayout = "2006-01-02T15:04:05.000000Z"

// appendText appends time, level, scope, message and key=value, tab-separated.
func (h *handler) appendText(b []byte, r slog.Record) []byte {
	b = r.Time.UTC().AppendFormat(b, timeLayout)
	b = fmt.Appendf(b, "\t%s\t%s\t%s", levelName(r.Level), h.scopeName(), oneLine(r.Message))
	for _, a := range h.attrs {
		b = fmt.Appendf(b, "\t%s=%s", quoted(a.Key), quoted(text(a.Value)))
	}
	return append(b, '\n')
}

// appendJSON appends one object: time, level, scope, msg and the attributes. A key
// that appears twice is printed twice, as slog.JSONHandler does.
func (h *handler) appendJSON(b []byte, r slog.Record) []byte {
	b = append(b, `{"time":"`...)
	b = r.Time.UTC().AppendFormat(b, timeLayout)
	b = fmt.Appendf(b, `","level":"%s","scope":%s,"msg":%s`, levelName(r.Level), jsonValue(h.scopeName()), jsonValue(r.Message))
	for _, a := range h.attrs {
		var value any = text(a.Value)
		switch a.Value.Kind() {
		case slog.KindBool, slog.KindInt64, slog.KindUint64, slog.KindFloat64:
			value = a.Value.Any()
		}
		b = fmt.Appendf(b, ",%s:%s", jsonValue(a.Key), jsonValue(value))
	}
	return append(b, '}', '\n')
}

// scopeName of a record without a scope is Istio's.
func (h *handler) scopeName() string { return quoted(cmp.Or(h.scope, "default")) }

// text is the plain form of a value: what fmt prints, with times in the log's form.
func text(v slog.Value) string {
	switch v.Kind() {
	case slog.KindTime:
		return v.Time().UTC().Format(timeLayout)
	case slog.KindDuration:
		return v.Duration().Round(time.Microsecond).String()
	}
	return v.String()
}

// jsonValue is v as JSON; what JSON cannot say (NaN) becomes its text.
func jsonValue(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		b, _ = json.Marshal(fmt.Sprint(v)) // a string always marshals
	}
	return b
}

// quoted is s as it is when it is one plain word, and a Go string literal otherwise,
// so that a value can neither end its column nor its line.
func quoted(s string) string {
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}) {
		return strconv.Quote(s)
	}
	return s
}

// oneLine is a message with everything that could break the line or the columns
// escaped; unlike a value it keeps its spaces and quotes.
func oneLine(s string) string {
	clean := func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }
	if !strings.ContainsFunc(s, clean) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
