// Command pilot-agent-standby is the pilot-agent of the empty image: what runs
// in the slot that does not serve, with the command line and the hooks of the
// one that does. "proxy" idles until it is asked to stop, "version" prints, and
// every other command succeeds at once, so that no hook of the idle slot fails.
//
// It is in every pod and does nothing: it uses no package that costs memory.
package main

import (
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// version is set by the linker (-X main.version=...).
var version = "dev"

func main() {
	// Before all else: the kernel does not deliver a signal without a handler
	// to PID 1, and the runtime's own handler would not exit with 0.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)

	switch command(os.Args[1:]) {
	case "proxy":
		idle(signals)
	case "version":
		os.Stdout.WriteString("client version: " + version + " (standby)\n")
	}
}

// command finds the command among the arguments: flags may come before it, and
// the word after a flag without "=" may be that flag's value.
func command(args []string) string {
	for i, arg := range args {
		switch {
		case strings.HasPrefix(arg, "-"):
		case arg == "proxy", i == 0, !strings.HasPrefix(args[i-1], "-"), strings.Contains(args[i-1], "="):
			return arg
		}
	}
	return ""
}

// idle returns on SIGTERM or SIGINT. Until then it reaps every child: as PID 1
// it gets the orphans of its container, some perhaps before it had begun.
func idle(signals <-chan os.Signal) {
	reap()
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		reap()
	}
}

// reap collects all children that have ended. One signal may stand for many.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != syscall.EINTR && pid <= 0 {
			return
		}
	}
}
