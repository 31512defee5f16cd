// Command pilot-agent is the agent of a pod: it captures the pod's traffic, answers its
// DNS, and runs and configures its Envoy. This package owns the command line: it reads
// the process's surroundings once, and every other package receives values.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/pkg/config"
)

func main() { os.Exit(runProcess()) }

// runProcess runs the command line of this process and returns its exit status: 0, 1 after
// an error, 2 after a wrong command line, or the status that a command ends with.
func runProcess() int {
	// This comes first, since PID 1 of a container has no default action for signals. A
	// second signal changes nothing; SIGKILL ends what takes too long.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	e := &cli.Env{
		Args:    os.Args[1:],
		Environ: os.Environ(),
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		First:   os.Getpid() == 1,
	}
	e.TerminationLog = e.Variable("UNDERSTUDY_TERMINATION_LOG", config.DefaultTerminationLog)
	return run(ctx, e)
}
