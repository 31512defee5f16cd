package config

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parseDownward reads a file of the downward API: lines of key="quoted value"
// (Kubernetes: "Expose Pod Information to Containers Through Files").
func parseDownward(data []byte) (map[string]string, error) {
	if len(data) > maxInput {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(data), maxInput)
	}
	entries := map[string]string{}
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, quoted, found := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !found || key == "" || err != nil || !utf8.ValidString(key+value) {
			return nil, fmt.Errorf(`line %d: want key="quoted value"`, number)
		}
		entries[key] = value
	}
	return entries, nil
}
