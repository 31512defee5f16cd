package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"strings"
	"sync"
	"testing"
	"time"
)

var at = time.Date(2026, 8, 1, 12, 0, 0, 123456789, time.FixedZone("CST", 8*3600))

// emit logs one record at a fixed time and returns the output.
func emit(t *testing.T, o Options, scope, msg string, args ...any) string {
	t.Helper()
	var b bytes.Buffer
	h := For(New(&b, o), scope).Handler()
	r := slog.NewRecord(at, slog.LevelInfo, msg, 0)
	r.Add(args...)
	if err := h.Handle(context.Background(), r); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestText(t *testing.T) {
	const head = "2026-08-01T04:00:00.123456Z\tinfo\t"
	for _, tc := range []struct {
		name, scope, msg string
		args             []any
		want             string
	}{
		{"plain", "dnsproxy", "table is ready", []any{"hosts", 3, "took", 1500 * time.Microsecond}, "dnsproxy\ttable is ready\thosts=3\ttook=1.5ms"},
		{"no scope", "", "m", nil, "default\tm"},
		{"quoting", "a", "m", []any{"k", "two words", "e", "", "t", "a\tb\nc", "q", `"`, "eq", "a=b"}, `a	m	k="two words"	e=""	t="a\tb\nc"	q="\""	eq="a=b"`},
		{"message in one line", "a", "x\ny\tz \"q\" \x1b[31m 名 \xff", nil, `a	x\ny\tz "q" \x1b[31m 名 \xff`},
		{"hostile key and scope", "a\tb", "m", []any{"k\n=", 1}, `"a\tb"` + "\tm\t" + `"k\n="=1`},
		{"error", "a", "m", []any{"err", errors.New("no such file")}, "a\tm\t" + `err="no such file"`},
		{"group", "a", "m", []any{slog.Group("g", "x", 1, slog.Group("h", "y", 2))}, "a\tm\tg.x=1\tg.h.y=2"},
		{"time", "a", "m", []any{"t", at}, "a\tm\tt=2026-08-01T04:00:00.123456Z"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := emit(t, Options{}, tc.scope, tc.msg, tc.args...); got != head+tc.want+"\n" {
				t.Errorf("\n got %q\nwant %q", got, head+tc.want+"\n")
			}
		})
	}
}

func TestJSON(t *testing.T) {
	line := emit(t, Options{JSON: true}, "xds", "a\n\"b\"", "n", 3, "f", math.NaN(), "d", time.Second, "err", errors.New("x y"), "ok", true)
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	want := map[string]any{
		"time": "2026-08-01T04:00:00.123456Z", "level": "info", "scope": "xds", "msg": "a\n\"b\"",
		"n": 3.0, "f": "NaN", "d": "1s", "err": "x y", "ok": true,
	}
	for key, value := range want {
		if got[key] != value {
			t.Errorf("%s is %v, want %v", key, got[key], value)
		}
	}
	if len(got) != len(want) || strings.Count(line, "\n") != 1 {
		t.Errorf("line %s", line)
	}
}

func TestLevels(t *testing.T) {
	levels, err := ParseLevels("default:warn, dns:debug,quiet:none,fatal:fatal")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	root := New(&b, Options{Levels: levels})
	for _, scope := range []string{"other", "dns", "quiet", "fatal"} {
		l := For(root, scope)
		l.Debug("m")
		l.Info("m")
		l.Warn("m")
		l.Error("m")
	}
	var got []string
	for line := range strings.Lines(b.String()) {
		columns := strings.Split(line, "\t")
		got = append(got, columns[2]+":"+columns[1])
	}
	want := "other:warn other:error dns:debug dns:info dns:warn dns:error"
	if strings.Join(got, " ") != want {
		t.Errorf("printed %v, want %s", got, want)
	}
	if s := levels.String(); s != "default:warn,dns:debug,fatal:fatal,quiet:none" {
		t.Errorf("String is %s", s)
	}
}

func TestParseLevels(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "default:info",
		"debug":                  "default:debug",
		"all:error":              "default:error",
		"default:info,grpc:none": "default:info,grpc:none",
		"a:info,,":               "default:info,a:info",
	} {
		levels, err := ParseLevels(text)
		if err != nil || levels.String() != want {
			t.Errorf("%q: %v, %v, want %s", text, levels, err, want)
		}
	}
	for _, text := range []string{"loud", "a:", "a:b:c", "dns:DEBUG"} {
		if levels, err := ParseLevels(text); err == nil {
			t.Errorf("%q: accepted as %v", text, levels)
		}
	}
}

// TestSiblings checks that loggers made from one do not write into each other's
// attributes, whatever the capacity of the slice they share.
func TestSiblings(t *testing.T) {
	var b bytes.Buffer
	parent := New(&b, Options{}).With("a", 1, "b", 2, "c", 3).WithGroup("g").With("scope", "kept")
	first, second := parent.With("x", 1), parent.With("x", 2)
	first.Info("m")
	second.Info("m")
	for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		want := []string{"default\tm\ta=1\tb=2\tc=3\tg.scope=kept\tg.x=1", "default\tm\ta=1\tb=2\tc=3\tg.scope=kept\tg.x=2"}[i]
		if !strings.HasSuffix(line, want) {
			t.Errorf("line %d is %q, want its end to be %q", i, line, want)
		}
	}
}

func TestConcurrentLinesStayWhole(t *testing.T) {
	var b bytes.Buffer
	log := New(&b, Options{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				For(log, "a").Info("message", "k", strings.Repeat("v", 100))
			}
		})
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for _, line := range lines {
		if strings.Count(line, "\t") != 4 || !strings.HasSuffix(line, "k="+strings.Repeat("v", 100)) {
			t.Fatalf("torn line %q", line)
		}
	}
	if len(lines) != 400 {
		t.Errorf("%d lines, want 400", len(lines))
	}
}

func FuzzOneRecordIsOneLine(f *testing.F) {
	f.Add("m", "k", "v", "s", true)
	f.Add("a\nb", "k\t", "\xff\x00", "", false)
	f.Fuzz(func(t *testing.T, msg, key, value, scope string, asJSON bool) {
		line := emit(t, Options{JSON: asJSON}, scope, msg, key, value)
		if !strings.HasSuffix(line, "\n") || strings.ContainsAny(line[:len(line)-1], "\n\r") {
			t.Fatalf("not one line: %q", line)
		}
		if asJSON && !json.Valid([]byte(line)) {
			t.Fatalf("not JSON: %q", line)
		}
		if !asJSON && key != "" && strings.Count(line, "\t") != 4 {
			t.Fatalf("not 5 columns: %q", line)
		}
	})
}
