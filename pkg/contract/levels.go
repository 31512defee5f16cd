package contract

import (
	"fmt"
	"slices"
	"strings"
)

// envoyLevels are the names that Envoy's -l takes (envoy --help).
var envoyLevels = []string{"trace", "debug", "info", "warning", "warn", "error", "critical", "off"}

// CheckEnvoyLevels judges --proxyLogLevel: bare levels, of which the last counts, and component:level parts, as Istio's
// agent reads it.
func CheckEnvoyLevels(text string) error {
	bare := 0
	for part := range strings.SplitSeq(text, ",") {
		component, level, found := strings.Cut(part, ":")
		if !found {
			component, level = "", part
			bare++
		}
		if (found && component == "") || !slices.Contains(envoyLevels, level) {
			return wantLevel(part)
		}
	}
	if bare == 0 {
		return fmt.Errorf("want a level besides the component levels, such as warning,%s", text)
	}
	return nil
}

// CheckEnvoyComponents judges --proxyComponentLogLevel: component:level parts only, or nothing.
func CheckEnvoyComponents(text string) error {
	if text == "" {
		return nil
	}
	for part := range strings.SplitSeq(text, ",") {
		component, level, found := strings.Cut(part, ":")
		if !found || component == "" || !slices.Contains(envoyLevels, level) {
			return fmt.Errorf("want component:level parts, such as misc:error: %w", wantLevel(part))
		}
	}
	return nil
}

func wantLevel(part string) error {
	return fmt.Errorf("%q is not one of %s", part, strings.Join(envoyLevels, ", "))
}
