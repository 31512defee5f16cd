package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"understudy.mesh/tests/lab"
)

// clockTick is the unit of /proc/<pid>/stat's times: sysconf(_SC_CLK_TCK), 100 a second on every
// Linux architecture that Go supports.
const clockTick = 10 * time.Millisecond

// cpuTime returns the user and system time of all threads of a process, as in proc(5).
func cpuTime(t lab.T, pid int) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatalf("read the processor time of %d: %v", pid, err)
	}
	// The second field is the name in parentheses, and may have spaces.
	after := string(stat)[strings.LastIndexByte(string(stat), ')')+1:]
	fields := strings.Fields(after)
	var user, system int64
	if _, err := fmt.Sscan(fields[11], &user); err != nil {
		t.Fatalf("read the user time of %d: %v", pid, err)
	}
	if _, err := fmt.Sscan(fields[12], &system); err != nil {
		t.Fatalf("read the system time of %d: %v", pid, err)
	}
	return time.Duration(user+system) * clockTick
}

// memory is a process's resident memory in MiB: all of it, and the anonymous part.
type memory struct{ rss, anon float64 }

func memoryOf(t lab.T, pid int) memory {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("read the memory of %d: %v", pid, err)
	}
	var m memory
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kib); err == nil {
			m.rss = kib / 1024
		}
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
			m.anon = kib / 1024
		}
	}
	return m
}

// pssOf is a process's proportional set size in MiB (proc(5), smaps_rollup): a page that several
// share is counted in parts.
func pssOf(t lab.T, pid int) float64 {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatalf("read the memory of %d: %v", pid, err)
	}
	for line := range strings.Lines(string(rollup)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "Pss: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	t.Fatalf("the memory of %d has no Pss: %s", pid, rollup)
	return 0
}
