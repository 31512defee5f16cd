package main

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestBootTime compares with what the kernel says elsewhere: /proc/uptime counts by the
// same clock, in hundredths of a second (proc_uptime(5)).
func TestBootTime(t *testing.T) {
	const hundredth = 10 * time.Millisecond
	before := uptime(t)
	got := bootTime()
	after := uptime(t)
	if got < before || got > after+hundredth {
		t.Errorf("%s, want between %s and %s", got, before, after+hundredth)
	}
}

func uptime(t *testing.T) time.Duration {
	t.Helper()
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}
