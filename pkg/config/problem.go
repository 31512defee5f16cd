package config

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"

	"understudy.mesh/pkg/contract"
)

// Names of sources, as they appear in problems, warnings and the dump.
const (
	sourceDefault     = "default"
	sourceEnv         = "environment"
	sourceFlag        = "command line"
	sourceProxyConfig = contract.ConfigVariable
	sourceDerived     = "derived"
	sourceAnnotation  = "annotation"
)

// masked stands for the value of a secret.
const masked = "(masked)"

// maxShownValue bounds the part of a wrong value that an error repeats, so that one
// record stays one readable line; no setting that is typed by hand is longer.
const maxShownValue = 120

// problem is one wrong setting. It prints as one line.
type problem struct {
	source string // where it was read: sourceFlag, sourceEnv, a file, an annotation
	key    string // as it is spelled there
	value  string // what it says; "" leaves it out
	remedy string // what would be right
}

// Error is "source: key="value": remedy".
func (p *problem) Error() string {
	if p.value == "" {
		return fmt.Sprintf("%s: %s: %s", p.source, p.key, p.remedy)
	}
	return fmt.Sprintf("%s: %s=%s: %s", p.source, p.key, shown(p.value), p.remedy)
}

// Warning is a setting that was understood and has no effect, or was not understood
// and is ignored. It prints as one line.
type Warning struct {
	source, key, message string
}

// String is "source: key: message".
func (w Warning) String() string {
	return fmt.Sprintf("%s: %s: %s", w.source, w.key, w.message)
}

// IsUsage reports whether an error of Load or ParseRole is about the command line, which
// ends the process with status 2 and not 1.
func IsUsage(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return slices.ContainsFunc(joined.Unwrap(), IsUsage)
	}
	var p *problem
	return errors.As(err, &p) && p.source == sourceFlag
}

// shown quotes a value on one line, cut to maxShownValue bytes at a rune boundary.
func shown(value string) string {
	if len(value) <= maxShownValue {
		return strconv.Quote(value)
	}
	cut := maxShownValue
	for cut > 0 && !utf8.RuneStart(value[cut]) {
		cut--
	}
	return strconv.Quote(value[:cut]) + "..."
}

// sortedKeys is for everything that is reported in a loop over a map: the order of
// errors must not change from run to run.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
