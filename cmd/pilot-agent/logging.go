package main

import (
	"fmt"
	"io"
	"os"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
)

// logFileMode lets the pod's log collector read the file, which runs as another user.
const logFileMode = 0o644

// openLog returns where the agent's log goes: --log_target's stdout, stderr or file.
// The caller closes it; closing the standard streams does nothing.
func openLog(e *cli.Env, target string) (io.WriteCloser, error) {
	switch target {
	case "stdout":
		return nopCloser{e.Stdout}, nil
	case "stderr":
		return nopCloser{e.Stderr}, nil
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_APPEND|os.O_WRONLY, logFileMode)
	if err != nil {
		return nil, fmt.Errorf("open the log, --log_target: want stdout, stderr or a file that can be written: %w", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
