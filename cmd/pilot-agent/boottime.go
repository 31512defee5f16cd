package main

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the node booted, suspends included (CLOCK_BOOTTIME,
// clock_gettime(2)), 0 if the kernel does not tell. All containers of a node share this
// clock, and nobody can set it.
func bootTime() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}
