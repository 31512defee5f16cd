package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"
)

// Class is the way in which a request failed, as its client saw it.
type Class string

// The classes.
const (
	Refused   Class = "refused"   // no one listens: RST to the SYN, or ICMP port unreachable
	Reset     Class = "reset"     // RST on an open connection, or RST_STREAM
	EOF       Class = "eof"       // closed before the answer, or the stream, was complete
	Timeout   Class = "timeout"   // no answer in the flow's time
	Status5xx Class = "status5xx" // an HTTP status of 500 or more
	Wrong     Class = "wrong"     // an answer, but not the right one: status, body, echo, rcode, address
	Other     Class = "other"     // none of these: the load generator's own trouble, first of all
)

// Classes is every class, in the order of reports.
func Classes() []Class { return []Class{Refused, Reset, EOF, Timeout, Status5xx, Wrong, Other} }

// Failure is one request that failed.
type Failure struct {
	Time  time.Time `json:"time"` // when it was found to have failed
	Flow  string    `json:"flow"`
	Class Class     `json:"class"`
	Text  string    `json:"text"`
	// Milliseconds is from when the request was due until Time.
	Milliseconds float64 `json:"after_ms"`
}

func (f Failure) String() string {
	return fmt.Sprintf("%s %s %s after %.1f ms: %s", f.Time.Format("15:04:05.000"), f.Flow, f.Class, f.Milliseconds, f.Text)
}

// answerError is an answer that came and is not the right one.
type answerError struct {
	class Class
	text  string
}

func (e *answerError) Error() string { return e.text }

func wrongf(format string, args ...any) error {
	return &answerError{class: Wrong, text: fmt.Sprintf(format, args...)}
}

// streamError has the form that net/http's unexported HTTP/2 stream error converts itself to, field
// by field (net/http, h2_error.go): the peer's RST_STREAM, or one that our side sends.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e streamError) Error() string { return fmt.Sprintf("stream %d: code %d", e.StreamID, e.Code) }

// classify says how a request failed that ended with err.
func classify(err error) Class {
	var answer *answerError
	var network net.Error
	var stream streamError
	switch {
	case errors.As(err, &answer):
		return answer.class
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	// EPIPE: the reset came before this write, and an earlier one had taken the ECONNRESET.
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.As(err, &stream):
		return Reset
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return Timeout
	// net/http's GOAWAY error is unexported: a connection closed under a stream that was in flight.
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), strings.Contains(err.Error(), "server sent GOAWAY"):
		return EOF
	// net/http's for the other streams of a connection, once a write of one of them has met the reset.
	case strings.Contains(err.Error(), "http2: client connection force closed"):
		return Reset
	// net/http's, when its PING on a silent connection is not answered.
	case strings.Contains(err.Error(), "http2: client connection lost"):
		return Timeout
	default:
		return Other
	}
}

// describe is an error's text, with the remedy where the trouble is the load generator's.
func describe(err error) string {
	switch {
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return err.Error() + " (no local port is free: widen net.ipv4.ip_local_port_range, or see who leaves TIME_WAIT)"
	case errors.Is(err, syscall.EMFILE):
		return err.Error() + " (raise the limit of open files)"
	}
	return err.Error()
}
