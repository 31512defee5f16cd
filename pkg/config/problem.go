package config

import (
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Names of sources, as they appear in problems, warnings and the dump.
const (
	SourceDefault     = "default"
	SourceEnv         = "environment"
	SourceFlag        = "command line"
	sourceProxyConfig = "PROXY_CONFIG"
	sourceDerived     = "derived"
	sourceAnnotation  = "annotation"
)

// maxShownValue bounds the part of a wrong value that an error repeats, so that one
// record stays one readable line; no setting that is typed by hand is longer.
const maxShownValue = 120

// Problem is one wrong setting. It prints as one line.
type Problem struct {
	Source string // where it was read: SourceFlag, SourceEnv, a file, an annotation
	Key    string // as it is spelled there
	Value  string // what it says; "" leaves it out
	Remedy string // what would be right
}

// Error is "source: key="value": remedy".
func (p *Problem) Error() string {
	if p.Value == "" {
		return fmt.Sprintf("%s: %s: %s", p.Source, p.Key, p.Remedy)
	}
	return fmt.Sprintf("%s: %s=%s: %s", p.Source, p.Key, shown(p.Value), p.Remedy)
}

// Warning is a setting that was understood and has no effect, or was not understood
// and is ignored. It prints as one line.
type Warning struct {
	Source, Key, Message string
}

// String is "source: key: message".
func (w Warning) String() string {
	return fmt.Sprintf("%s: %s: %s", w.Source, w.Key, w.Message)
}

// IsUsage reports whether an error of Load or ParseRole blames the command line, which
// ends the process with status 2 and not 1.
func IsUsage(err error) bool {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			if IsUsage(e) {
				return true
			}
		}
		return false
	}
	var p *Problem
	return errors.As(err, &p) && p.Source == SourceFlag
}

func join(problems []*Problem) error {
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return errors.Join(errs...)
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
