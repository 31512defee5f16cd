package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// startLimit is how long a component may take until it serves. On a free machine it is a few seconds.
	startLimit = 3 * time.Minute
	// lookEvery is the pause between two looks at a component that does not serve yet.
	lookEvery = 50 * time.Millisecond
	// restartPause is systemd's RestartSec as the packages of a node set it, about.
	restartPause = time.Second
	// shownLog is how much of the end of a component's log an error shows.
	shownLog = 2000
)

// supervisor starts the components, and starts them again when they end.
type supervisor struct {
	logs     string // the directory of the logs, shown the same one as somebody on the machine finds it
	shown    string
	programs []program

	mu      sync.Mutex
	running map[Component]*process
}

// process is one life of a component.
type process struct {
	cmd     *exec.Cmd
	ended   chan struct{}
	stopped bool // by request: it is not started again
}

func newSupervisor(c Config) *supervisor {
	return &supervisor{
		logs: "/var/log", shown: filepath.Join(c.State, Log), programs: append(slices.Concat(phases(c)...), onRequest()...),
		running: make(map[Component]*process),
	}
}

func (s *supervisor) program(name Component) (program, error) {
	for _, p := range s.programs {
		if p.name == name {
			return p, nil
		}
	}
	return program{}, fmt.Errorf("no component %q", name)
}

func (s *supervisor) logFile(name Component) string {
	return filepath.Join(s.logs, string(name)+".log")
}

// startAll starts programs together, and returns when all of them serve.
func (s *supervisor) startAll(ctx context.Context, programs []program, done func(string) error) error {
	for _, p := range programs {
		if err := s.start(p); err != nil {
			return err
		}
	}
	for _, p := range programs {
		if err := s.waitReady(ctx, p); err != nil {
			return err
		}
		if err := done(string(p.name)); err != nil {
			return err
		}
	}
	return nil
}

// start starts a program that does not run.
func (s *supervisor) start(p program) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if life := s.running[p.name]; life != nil && !life.isOver() {
		return nil
	}
	log, err := os.OpenFile(s.logFile(p.name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	// The programs of the node look for others beside them, as containerd for its shim.
	cmd.Env = append(os.Environ(), "HOME=/run/node", "PATH="+BinDir+":/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Env = append(cmd.Env, p.env...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	life := &process{cmd: cmd, ended: make(chan struct{})}
	s.running[p.name] = life
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(life.ended)
		time.AfterFunc(restartPause, func() { s.again(p, life) })
	}()
	return nil
}

func (p *process) isOver() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// again starts a component that has ended by itself, as systemd would.
func (s *supervisor) again(p program, life *process) {
	s.mu.Lock()
	stopped, current := life.stopped, s.running[p.name] == life
	s.mu.Unlock()
	if stopped || !current {
		return
	}
	slog.Warn("a component ended, and is started again", "component", p.name, "status", life.cmd.ProcessState.String())
	if err := s.start(p); err != nil {
		slog.Error("a component cannot be started again", "component", p.name, "reason", err)
	}
}

// waitReady returns when a component serves. That it ends before is an error at once: it is the reason.
func (s *supervisor) waitReady(ctx context.Context, p program) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	s.mu.Lock()
	life := s.running[p.name]
	s.mu.Unlock()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		look := p.ready(ctx)
		if life.isOver() {
			return fmt.Errorf("%s ended before it served (%v); the end of %s", p.name, life.cmd.ProcessState, s.logEnd(p.name))
		}
		if look == nil {
			return nil
		}
		select {
		case <-life.ended:
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w (%w); the end of %s", p.name, look, ctx.Err(), s.logEnd(p.name))
		}
	}
}

// logEnd is a component's log as somebody on the machine finds it, and its end in whole lines.
func (s *supervisor) logEnd(name Component) string {
	f, err := os.Open(s.logFile(name))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-shownLog), io.SeekStart)
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	if _, whole, found := bytes.Cut(text, []byte("\n")); found && len(text) >= shownLog {
		text = whole
	}
	return filepath.Join(s.shown, string(name)+".log") + ":\n" + strings.TrimSpace(string(text))
}

// stop ends a component by a signal and returns when it has ended. It stays down until it is started.
func (s *supervisor) stop(ctx context.Context, name Component, signal syscall.Signal) error {
	s.mu.Lock()
	life := s.running[name]
	if life != nil {
		life.stopped = true
	}
	s.mu.Unlock()
	if life == nil || life.isOver() {
		return nil
	}
	if err := life.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", name, err)
	}
	select {
	case <-life.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: it has not ended: %w", name, ctx.Err())
	}
}
