package envoy

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// clockTick is the unit of times in /proc: USER_HZ is 100 on every architecture that Go and
// Envoy run on (proc_pid_stat(5)).
const clockTick = 10 * time.Millisecond

// thread is what the kernel knows of a thread at one moment.
type thread struct {
	// time is the processor time that it has had, in user and kernel mode, in steps of 10 ms.
	time time.Duration
	// runnable says that it runs, or would if it got a processor.
	runnable bool
}

// mainThread looks at the main thread of the process. It fails when the process has ended.
func (p *Process) mainThread() (thread, error) {
	path := fmt.Sprintf("/proc/%d/task/%[1]d/stat", p.pid())
	data, err := os.ReadFile(path)
	if err != nil {
		return thread{}, fmt.Errorf("look at Envoy's main thread: %w", err)
	}
	t, err := parseThread(data)
	if err != nil {
		return thread{}, fmt.Errorf("look at Envoy's main thread: %s: %w", path, err)
	}
	return t, nil
}

// parseThread reads the state, utime and stime: the 3rd, 14th and 15th field. The second one, the
// name in parentheses, may hold anything.
func parseThread(stat []byte) (thread, error) {
	const state, utime, stime = 0, 14 - 3, 15 - 3 // from the third field on
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= stime {
		return thread{}, fmt.Errorf("%d fields after the name, want more than %d", len(fields), stime)
	}
	t := thread{runnable: string(fields[state]) == "R"}
	for _, field := range fields[utime : stime+1] {
		ticks, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return thread{}, err
		}
		t.time += time.Duration(ticks) * clockTick
	}
	return t, nil
}
