package config

import (
	"strings"
)

// checkedText returns a text as it is, if it is right.
func checkedText(check func(string) error) func(string) (string, error) {
	return func(text string) (string, error) { return text, check(text) }
}

// splitLevels parts a checked --proxyLogLevel into -l and --component-log-level.
func splitLevels(text string) (level, components string) {
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if strings.Contains(part, ":") {
			parts = append(parts, part)
			continue
		}
		level = part
	}
	return level, strings.Join(parts, ",")
}
