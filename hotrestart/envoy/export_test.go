package envoy

// ErrUnanswered is for the tests that have a real Envoy.
var ErrUnanswered = errUnanswered
