package envoy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"syscall"

	hotenvoy "understudy.mesh/hotrestart/envoy"
)

// unfitError is why no Envoy of a binary will do, however often it is started.
type unfitError struct{ err error }

func (e *unfitError) Error() string { return e.err.Error() }
func (e *unfitError) Unwrap() error { return e.err }

// Hopeless tells whether what ended [Supervisor.Run] before an Envoy ever served would end it again: the binary
// cannot be executed, its Envoys take no part in hot restarts and would have to, or maxEarlyDeaths of them died.
// A lack of memory, processes or time, and a full /dev/shm, may pass.
func Hopeless(err error) bool {
	return errors.As(err, new(*unfitError)) || errors.As(err, new(*ExitError))
}

// notExecutable tells whether execve(2) failed because of the file, and not of what the machine lacks.
func notExecutable(err error) bool {
	for _, cause := range []error{exec.ErrNotFound, fs.ErrNotExist, fs.ErrPermission, syscall.ENOEXEC, syscall.ENOTDIR, syscall.EISDIR} {
		if errors.Is(err, cause) {
			return true
		}
	}
	return false
}

// ask asks the binary which hot restarts its Envoys can take part in. The error is an *unfitError, unless it may pass.
func (l *launcher) ask(ctx context.Context) (hotenvoy.Version, error) {
	version, err := hotenvoy.ReadVersion(ctx, l.cfg.Binary)
	if err == nil {
		err = version.Check()
	}
	if err == nil || mayPass(err) {
		return version, err
	}
	return version, &unfitError{err}
}

// mayPass tells whether a binary that was asked for its version may answer another time.
func mayPass(err error) bool {
	var exit *exec.ExitError
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, exec.ErrWaitDelay):
		return true
	case errors.As(err, &exit):
		return !exit.Exited() // a signal ended it
	case errors.As(err, &errno):
		return !notExecutable(err)
	}
	return false
}

// fit says why no Envoy of the binary may be started beside one that may still serve; nil where none does. One that
// was built without hot restart ignores what it is told of it: with SO_REUSEPORT it would bind the same ports and take
// a share of the connections. To ask takes as long as half a start, in which the other one serves.
func (l *launcher) fit(ctx context.Context) error {
	if l.cfg.Inherits == nil || !l.cfg.Inherits() {
		return nil
	}
	version, err := l.ask(ctx)
	switch {
	case err == nil:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.version = version
		return nil
	case notExecutable(err):
		return startError(l.cfg.Binary, err)
	}
	return fmt.Errorf("%w: %w", ErrNoHotRestart, err)
}
