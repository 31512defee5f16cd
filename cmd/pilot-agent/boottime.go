package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the node was booted, suspends included (CLOCK_BOOTTIME,
// clock_gettime(2)): the one clock that all containers of a node share and that nobody
// sets. It is 0, which stands for unknown, where the kernel does not tell.
func bootTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
