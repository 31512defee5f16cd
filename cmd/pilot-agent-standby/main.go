// Command pilot-agent-standby is the pilot-agent of the empty image: what runs
// in the slot that does not serve, with the command line and the hooks of the
// one that does. "proxy" idles until it is asked to stop, "version" prints, hooks
// succeed at once, "request GET" is answered by the generation that serves, and
// any other command says which slot to ask.
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

// Exit statuses, those of the agent's own commands.
const (
	exitError = 1
	exitUsage = 2
)

const help = `This is the pilot-agent of the empty image: the slot of the pod that does not serve.

  proxy ...                  idles until SIGTERM
  wait, request POST PATH    hooks: return at once
  request GET PATH           is answered by the generation that serves (--debug-port 15000, 15020, ...)
  version                    prints the version

Any other command has to be run in the pod's other slot.
`

func main() {
	// Before all else: the kernel does not deliver a signal without a handler
	// to PID 1, and the runtime's own handler would not exit with 0.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)

	name, args := command(os.Args[1:])
	if name == "proxy" {
		idle(signals)
		return
	}
	signal.Reset()
	os.Exit(run(name, args))
}

// run executes a command that does not last, and returns the exit status.
func run(name string, args []string) int {
	switch name {
	case "version":
		os.Stdout.WriteString("client version: " + version + " (standby)\n")
		return 0
	case "wait":
		return 0
	case "", "help":
		os.Stdout.WriteString(help)
		return 0
	case "request":
		r, err := parseRequest(args)
		switch {
		case err != nil:
			complain("request: " + err.Error())
			return exitUsage
		case r.method == "POST": // a hook, which is about this slot
			return 0
		case r.method == "GET":
			return answer(r)
		}
	}
	complain(name + ": this slot has the empty image, and no agent: " + elsewhere(os.Args[1:]))
	return exitError
}

// complain writes an error as the agent's commands do.
func complain(text string) { os.Stderr.WriteString("pilot-agent: " + oneLine(text) + "\n") }

// oneLine replaces control characters, which would break the line or the terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}

// command finds the command among the arguments, and what follows it: flags may come
// before it, and the word after a flag without "=" may be that flag's value.
func command(args []string) (name string, rest []string) {
	for i, arg := range args {
		switch {
		case strings.HasPrefix(arg, "-"):
		case arg == "proxy", i == 0, !strings.HasPrefix(args[i-1], "-"), strings.Contains(args[i-1], "="):
			return arg, args[i+1:]
		}
	}
	return "", nil
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
