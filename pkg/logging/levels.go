package logging

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"
)

// Levels that log/slog has no name for.
const (
	levelFatal = slog.LevelError + 4
	levelNone  = slog.Level(math.MaxInt)
)

// Levels says from which level on each scope is printed. The zero value is info for
// every scope. It is a value: nothing changes it after ParseLevels.
type Levels struct {
	fallback slog.Level
	scopes   map[string]slog.Level
}

// ParseLevels reads Istio's --log_output_level: "scope:level,...", where the scope
// "default" (or "all", or no scope) stands for every scope that is not named. Levels
// are debug, info, warn, error, fatal and none. Scopes that nothing logs to are
// accepted, because manifests carry the scopes of Istio's own agent.
func ParseLevels(s string) (Levels, error) {
	l := Levels{scopes: map[string]slog.Level{}}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		scope, name, found := strings.Cut(part, ":")
		if !found {
			scope, name = "default", part
		}
		level, err := parseLevel(name)
		if err != nil {
			return Levels{}, fmt.Errorf("scope %q: %w", scope, err)
		}
		if scope == "default" || scope == "all" {
			l.fallback = level
			continue
		}
		l.scopes[scope] = level
	}
	return l, nil
}

// level is the lowest level that is printed for a scope.
func (l Levels) level(scope string) slog.Level {
	if level, ok := l.scopes[scope]; ok {
		return level
	}
	return l.fallback
}

// String is the form that ParseLevels reads, scopes sorted.
func (l Levels) String() string {
	parts := []string{"default:" + levelName(l.fallback)}
	for _, scope := range slices.Sorted(maps.Keys(l.scopes)) {
		parts = append(parts, scope+":"+levelName(l.scopes[scope]))
	}
	return strings.Join(parts, ",")
}

// levels are all levels, with their names in Istio's flag, the highest first.
var levels = [...]struct {
	name  string
	level slog.Level
}{
	{"none", levelNone}, {"fatal", levelFatal}, {"error", slog.LevelError},
	{"warn", slog.LevelWarn}, {"info", slog.LevelInfo}, {"debug", slog.LevelDebug},
}

func parseLevel(name string) (slog.Level, error) {
	for _, l := range levels {
		if l.name == name {
			return l.level, nil
		}
	}
	return 0, fmt.Errorf("level %q is not one of debug, info, warn, error, fatal, none", name)
}

// levelName is the name of the highest level that is not above l, and debug below that.
func levelName(l slog.Level) string {
	for _, known := range levels {
		if l >= known.level {
			return known.name
		}
	}
	return "debug"
}
