package cli

import (
	"context"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"understudy.mesh/pkg/control"
)

const (
	// maxExplanation is what the kubelet reads of the file. Of more it would read the end.
	maxExplanation = 4096
	// tellTimeout bounds how long a `wait` that has failed takes to say so to its agent.
	tellTimeout = time.Second
)

// Explain leaves a reason, on one line, in the file that the kubelet makes for each container: `kubectl describe pod`
// shows it as the message of the container's last state. "" takes it back. The file is never made here: where there
// is none, on a laptop for one, nobody reads it.
func (e *Env) Explain(reason string) {
	if info, err := os.Stat(e.TerminationLog); err != nil || !info.Mode().IsRegular() {
		return
	}
	reason = control.OneLine(reason)
	reason = strings.ToValidUTF8(reason[:min(len(reason), maxExplanation)], "") // without half a letter
	f, err := os.OpenFile(e.TerminationLog, os.O_WRONLY|os.O_TRUNC, 0)
	if err == nil {
		defer f.Close()
		_, err = f.WriteString(reason)
	}
	if err != nil {
		e.Warn("the container's status will not say why it ended: %v", err)
	}
}

// ExplainCrash has the runtime write a panic, of any goroutine, where Explain writes. It takes several lines.
func (e *Env) ExplainCrash() error {
	f, err := os.OpenFile(e.TerminationLog, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil //nolint:nilerr // as in Explain
	}
	defer f.Close() // the runtime has a descriptor of its own
	return debug.SetCrashOutput(f, debug.CrashOptions{})
}

// explainEnd explains why a command failed, if that ends its container: the command is the container's own, or the
// postStart hook, of which the agent may have more to say. One that somebody runs in a container ends nothing.
func (e *Env) explainEnd(ctx context.Context, command, reason string) {
	switch {
	case e.TerminationLog == "":
	case e.First, command == "proxy": // which a shell may have started
		e.Explain(reason)
	case command == "wait" && ctx.Err() == nil:
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		_ = e.Client().WaitFailed(ctx, reason) // one that does not listen has ended, or will be asked to
	}
}
