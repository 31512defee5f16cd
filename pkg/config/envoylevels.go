package config

import (
	"fmt"
	"slices"
	"strings"
)

// envoyLevels are the names that Envoy's -l takes (envoy --help).
func envoyLevels() []string {
	return []string{"trace", "debug", "info", "warning", "warn", "error", "critical", "off"}
}

// parseEnvoyLevels reads --proxyLogLevel: bare levels, of which the last counts, and
// component:level parts, as Istio's agent does. It returns the text as it is.
func parseEnvoyLevels(text string) (string, error) {
	bare := 0
	for part := range strings.SplitSeq(text, ",") {
		component, level, found := strings.Cut(part, ":")
		if !found {
			component, level = "", part
			bare++
		}
		if (found && component == "") || !slices.Contains(envoyLevels(), level) {
			return "", wantLevel(part)
		}
	}
	if bare == 0 {
		return "", fmt.Errorf("want a level besides the component levels, such as warning,%s", text)
	}
	return text, nil
}

// parseEnvoyComponents reads --proxyComponentLogLevel: component:level parts only.
func parseEnvoyComponents(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(text, ",") {
		component, level, found := strings.Cut(part, ":")
		if !found || component == "" || !slices.Contains(envoyLevels(), level) {
			return "", fmt.Errorf("want component:level parts, such as misc:error: %w", wantLevel(part))
		}
	}
	return text, nil
}

func wantLevel(part string) error {
	return fmt.Errorf("%q is not one of %s", part, strings.Join(envoyLevels(), ", "))
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
