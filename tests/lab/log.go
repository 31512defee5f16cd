package lab

import (
	"bytes"
	"fmt"
	"regexp"
	"sync"
	"time"
)

// maxLog bounds what a Log keeps: a program that writes more than this in a test has a fault that
// its first 16 MiB show.
const maxLog = 16 << 20

// Log collects what a program writes. Its methods may be used from several goroutines.
type Log struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	dropped int           // bytes beyond maxLog
	grew    chan struct{} // closed, and replaced, at every write
}

func newLog() *Log { return &Log{grew: make(chan struct{})} }

// Write never fails.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := p[:min(len(p), maxLog-l.buf.Len())]
	l.buf.Write(keep)
	l.dropped += len(p) - len(keep)
	close(l.grew)
	l.grew = make(chan struct{})
	return len(p), nil
}

// String returns everything up to now.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dropped > 0 {
		return l.buf.String() + fmt.Sprintf("\n[%d more bytes were written]\n", l.dropped)
	}
	return l.buf.String()
}

// Len returns the number of bytes kept, a position for WaitForAfter.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Len()
}

// WaitFor waits until the pattern occurs and returns the match; the test fails after Deadline.
func (l *Log) WaitFor(t T, pattern string) string {
	t.Helper()
	return l.WaitForAfter(t, 0, pattern)
}

// WaitForAfter is WaitFor, without looking at the first bytes.
func (l *Log) WaitForAfter(t T, position int, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.NewTimer(Deadline)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		match, grew := re.Find(l.buf.Bytes()[position:]), l.grew
		found := string(match)
		l.mu.Unlock()
		if match != nil {
			return found
		}
		select {
		case <-grew:
		case <-timeout.C:
			t.Fatalf("log: no %q within %v", pattern, Deadline)
		}
	}
}
