package document

import (
	"fmt"
	"slices"
)

// Error is what is wrong with a document: the path of the field, and the reason with its remedy.
type Error struct{ Field, Reason string }

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Reason
	}
	return e.Field + ": " + e.Reason
}

// Join makes one of several errors, in their order; nil when there is none.
func Join(errs ...*Error) *Error {
	const most = 5 // in one line
	errs = slices.DeleteFunc(errs, func(e *Error) bool { return e == nil })
	if len(errs) == 0 {
		return nil
	}
	out := *errs[0]
	for _, e := range errs[1:min(most, len(errs))] {
		out.Reason += "; " + e.Error()
	}
	if left := len(errs) - most; left > 0 {
		out.Reason += fmt.Sprintf("; and %d more", left)
	}
	return &out
}

// Errorf returns the error of a field.
func Errorf(field, format string, args ...any) *Error {
	return &Error{field, fmt.Sprintf(format, args...)}
}

// In puts the place of what e is about before the path that e has; a nil e stays nil.
func (e *Error) In(prefix string) *Error {
	if e == nil {
		return nil
	}
	return &Error{prefix + e.Field, e.Reason}
}
