package xtables

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"understudy.mesh/iptables/internal/access"
)

const (
	// xtablesLock is how iptables calls the lock in its messages.
	xtablesLock = "xtables lock"

	// The lock is an flock(2) on this file, or on the one that the variable names.
	xtablesLockFile = "/run/xtables.lock"
	xtablesLockEnv  = "XTABLES_LOCKFILE="
)

// xtablesLockHolder names the process that holds the lock of binaries run with environ;
// "": nobody is seen to, since proc(5) leaves out other PID namespaces.
func xtablesLockHolder(environ []string) string {
	path := xtablesLockFile
	for _, e := range environ {
		if file, ok := strings.CutPrefix(e, xtablesLockEnv); ok && file != "" {
			path = file
		}
	}
	var file syscall.Stat_t
	if err := syscall.Stat(path, &file); err != nil {
		return ""
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return ""
	}
	if pid := flockHolder(string(locks), file.Ino); pid > 0 {
		return access.Process(pid)
	}
	return ""
}

// flockHolder returns the process that holds the flock on the file with this inode
// number, in the text of /proc/locks; 0 when there is none:
//
//	1: FLOCK  ADVISORY  WRITE 967 fe:00:9986066 0 EOF
//
// The device is not compared: an overlay file system shows another one here than in stat(2).
func flockHolder(locks string, inode uint64) int {
	for line := range strings.Lines(locks) {
		words := strings.Fields(line)
		if len(words) < 6 || slices.Contains(words, "->") || words[1] != "FLOCK" { // ->: waits for it
			continue
		}
		if strings.HasSuffix(words[5], fmt.Sprintf(":%d", inode)) {
			pid, _ := strconv.Atoi(words[4])
			return pid
		}
	}
	return 0
}
