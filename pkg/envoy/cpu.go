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

// MainThreadTime is the processor time that the main thread of the process has had, in user and
// kernel mode, in steps of 10 ms. It fails when the process has ended.
func (p *Process) MainThreadTime() (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/task/%[1]d/stat", p.PID())
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the processor time of Envoy: %w", err)
	}
	d, err := threadTime(data)
	if err != nil {
		return 0, fmt.Errorf("read the processor time of Envoy: %s: %w", path, err)
	}
	return d, nil
}

// threadTime reads utime and stime, the 14th and 15th field; the second one, the name in
// parentheses, may hold anything.
func threadTime(stat []byte) (time.Duration, error) {
	const utime, stime = 14 - 3, 15 - 3 // from the third field on
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= stime {
		return 0, fmt.Errorf("%d fields after the name, want more than %d", len(fields), stime)
	}
	var ticks int64
	for _, field := range fields[utime : stime+1] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick, nil
}
