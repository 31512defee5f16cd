package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Image is what a slot runs. Two images are the same when their names are, as for the kubelet.
type Image struct {
	Name string
	// Agent and Envoy are the host paths of /usr/local/bin/pilot-agent and /usr/local/bin/envoy;
	// "" for an image without.
	Agent, Envoy string
	// Files are further files of the image: host paths by paths in the container.
	Files map[string]string
	// Missing: the registry does not have it, so that it cannot be pulled.
	Missing bool
}

// SlotsOptions describe the pair of containers that the webhook makes of one.
type SlotsOptions struct {
	// Volumes of the pod; Volumes() when nil.
	Volumes []Volume
	// Args and Env are further arguments of `proxy sidecar`, and further or overriding environment.
	Args, Env []string
	// Command replaces the whole command line after pilot-agent, Args included.
	Command []string
	// Slots is how many there are; 2 when 0.
	Slots int
}

// Slots are containers of one pod that share its network namespace, configuration and volumes,
// each with its own mount and PID namespace, of which the agent is the first process.
type Slots struct {
	// HostConfig is the host directory that all of them see as ConfigMount.
	HostConfig string
	List       []*Slot

	lab     *Lab
	dir     string
	volumes []Volume
	holder  int // of the mount namespace in which the volumes are
}

// Slot is one of them. Its methods may be called from several goroutines.
type Slot struct {
	Name string
	Log  *Log // of all its lives, with a line between them

	slots *Slots
	index int
	env   []string

	mu      sync.Mutex // guards what follows
	command []string   // after pilot-agent
	life    *Agent
	ended   time.Time // the life before
	image   Image
	lives   int
}

// NewSlots makes the containers' surroundings; none runs yet.
func (l *Lab) NewSlots(t T, o SlotsOptions) *Slots {
	t.Helper()
	if o.Volumes == nil {
		o.Volumes = Volumes()
	}
	if o.Slots == 0 {
		o.Slots = 2
	}
	dir, err := os.MkdirTemp(l.Dir, "slots-")
	if err != nil {
		t.Fatalf("lab: make the slots' directory: %v", err)
	}
	s := &Slots{lab: l, dir: dir, HostConfig: filepath.Join(dir, "config"), volumes: o.Volumes}
	for _, d := range []string{dir, s.HostConfig, filepath.Join(s.HostConfig, "mesh"), filepath.Join(dir, "volumes")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatalf("lab: make the slots' directory: %v", err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // MkdirTemp's 0700 would keep the agent out
		t.Fatalf("lab: open the slots' directory: %v", err)
	}
	resolvConf(t, dir, ContainerOptions{})
	if o.Command == nil {
		o.Command = append([]string{"proxy", "sidecar", "--domain", "default.svc.cluster.local", "--configDir", ConfigMount + "/mesh"}, o.Args...)
	}
	for i := range o.Slots {
		slot := &Slot{Name: "istio-proxy-" + strconv.Itoa(i+1), Log: newLog(), slots: s, index: i, env: o.Env, command: o.Command}
		s.List = append(s.List, slot)
		if err := os.Mkdir(filepath.Join(dir, "root-"+strconv.Itoa(i)), 0o755); err != nil {
			t.Fatalf("lab: make a slot's root: %v", err)
		}
		t.Cleanup(func() { slot.end(t) })
	}
	args := []string{"unshare", "--mount", "sh", "-c", makeVolumes, "volumes", filepath.Join(dir, "volumes")}
	for _, v := range o.Volumes {
		for _, name := range v.names(o.Slots) {
			args = append(args, name, v.options())
		}
	}
	s.holder = hold(t, l.Pod.Command(context.Background(), args...))
	return s
}

// Write puts a file into the directory that the agents are configured from, as Container.Write does.
func (s *Slots) Write(t T, name, content string) {
	t.Helper()
	(&Container{HostConfig: s.HostConfig}).Write(t, name, content)
}

// Remove takes a file out of that directory.
func (s *Slots) Remove(t T, name string) {
	t.Helper()
	(&Container{HostConfig: s.HostConfig}).Remove(t, name)
}

// ErrRunning says that a slot runs something already.
var ErrRunning = errors.New("the slot runs")

// Start creates a container from the image in the slot and runs its agent, with env besides the
// pod's. It returns once the agent's program is executed, or has ended already.
func (s *Slot) Start(image Image, env ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life != nil && s.life.running() {
		return fmt.Errorf("start %s in %s: %w", image.Name, s.Name, ErrRunning)
	}
	s.lives++
	s.image = image
	_, _ = fmt.Fprintf(s.Log, "--- %s, life %d: image %s, %q\n", s.Name, s.lives, image.Name, env)
	a := &Agent{Log: s.Log, lab: s.slots.lab, done: make(chan struct{}), termination: s.terminationLog()}
	err := makeTerminationLog(a.termination)
	if err != nil {
		return fmt.Errorf("start %s in %s: %w", image.Name, s.Name, err)
	}
	a.cmd = s.process(image, env)
	err = a.start(AgentUID, func() error { return s.slots.lab.Pod.Do(a.cmd.Start) })
	if err != nil {
		return fmt.Errorf("start %s in %s: %w", image.Name, s.Name, err)
	}
	if s.life != nil {
		s.ended = s.life.ended
	}
	s.life = a
	return a.awaitExec()
}

// process is the container's first process: the shell that builds the root, and then the agent.
func (s *Slot) process(image Image, env []string) *exec.Cmd {
	dir := s.slots.dir
	volumes := []string{s.terminationLog() + ":dev/termination-log"}
	roShm := false
	for _, v := range s.slots.volumes {
		// The holder's mounts are in the namespace that this one is copied from.
		volumes = append(volumes, filepath.Join(dir, "volumes", v.name(s.index))+":"+strings.TrimPrefix(v.Mount, "/"))
		roShm = roShm || v.ReadOnly && v.Mount == "/dev/shm"
	}
	for inside, outside := range image.Files {
		volumes = append(volumes, outside+":"+strings.TrimPrefix(inside, "/"))
	}
	args := []string{"--mount=" + fmt.Sprintf("/proc/%d/ns/mnt", s.slots.holder), "--", "unshare", "--mount", "sh", "-c", buildRoot, s.Name,
		filepath.Join(dir, "root-"+strconv.Itoa(s.index)), flag(true), flag(roShm), image.Agent, image.Envoy,
		s.slots.HostConfig, filepath.Join(dir, "resolv.conf"), strings.Join(volumes, " "), "env", "-i"}
	cmd := exec.Command("nsenter", slices.Concat(args, s.environment(), env, asUser(AgentUID, "--no-new-privs"), []string{AgentPath}, s.command)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	return cmd
}

// terminationLog is the file that the container's present life has as its /dev/termination-log.
func (s *Slot) terminationLog() string {
	return filepath.Join(s.slots.dir, fmt.Sprintf("termination-log-%d-%d", s.index, s.lives))
}

// makeTerminationLog makes it as the kubelet does: empty, and writable for whoever the container runs as.
func makeTerminationLog(path string) error {
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return fmt.Errorf("make the termination log: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil { // whatever the umask is
		return fmt.Errorf("make the termination log writable: %w", err)
	}
	return nil
}

// environment is what every process of the slot has, but for what the pod's annotations say.
func (s *Slot) environment() []string {
	return slices.Concat([]string{"PATH=" + defaultPath}, environment(), s.env)
}

// AddArgs gives the agent further arguments, from its next start on.
func (s *Slot) AddArgs(args ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.command = slices.Concat(s.command, args)
}

// awaitExec waits until the container's first process is the agent, or has ended.
func (a *Agent) awaitExec() error {
	timeout := time.NewTimer(Deadline)
	defer timeout.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := a.executed()
		if err == nil {
			return nil
		}
		select {
		case <-a.done:
			return nil
		case <-tick.C:
		case <-timeout.C:
			return fmt.Errorf("the agent is not executed within %v: %w", Deadline, err)
		}
	}
}

func (a *Agent) running() bool {
	select {
	case <-a.done:
		return false
	default:
		return true
	}
}

// Agent is the present or last life of the slot; nil before the first.
func (s *Slot) Agent() *Agent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.life
}

// Running reports whether a container runs, and of which image the present or last one is.
func (s *Slot) Running() (image Image, running bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.image, s.life != nil && s.life.running()
}

// lastEnd is when the last container that has ended did; zero when none has.
func (s *Slot) lastEnd() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life == nil || s.life.running() {
		return s.ended
	}
	return s.life.ended
}

// ErrStopped says that there is no container to execute a command in.
var ErrStopped = errors.New("the slot is stopped")

// Exec runs a command in the container, as its user and with its environment, as the kubelet runs
// a hook or kubectl exec does.
func (s *Slot) Exec(ctx context.Context, argv ...string) (Result, error) {
	a := s.Agent()
	if a == nil || !a.running() {
		return Result{}, fmt.Errorf("execute %q in %s: %w", argv, s.Name, ErrStopped)
	}
	args := []string{"--target", strconv.Itoa(a.cmd.Process.Pid), "--mount", "--pid", "--net", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", slices.Concat(args, asUser(AgentUID, "--no-new-privs"), argv)...)
	cmd.Env = s.environment()
	// nsenter waits for its child, which outlives it: the pipes are not waited for.
	cmd.WaitDelay = time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return Result{}, fmt.Errorf("execute %q in %s: %w", argv, s.Name, err)
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}, ctx.Err()
}

// Run is Exec for a test, for at most Deadline.
func (s *Slot) Run(t T, argv ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	got, err := s.Exec(ctx, argv...)
	if err != nil {
		t.Fatalf("lab: %v: %v", err, got)
	}
	return got
}

// Stop ends the container: SIGTERM, and SIGKILL after grace. It returns the exit status, -1 for a
// signal, and false when there was none.
func (s *Slot) Stop(grace time.Duration) (code int, was bool) {
	a := s.Agent()
	if a == nil || !a.running() {
		return 0, false
	}
	a.Signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-a.done:
	case <-timer.C:
		s.Kill()
	}
	return a.cmd.ProcessState.ExitCode(), true
}

// Kill ends every process of the container with SIGKILL, and waits for it.
func (s *Slot) Kill() {
	if a := s.Agent(); a != nil {
		a.Signal(syscall.SIGKILL) // the first process of a PID namespace takes all others with it
		<-a.done
	}
}

func (s *Slot) end(t T) {
	s.Kill()
	if t.Failed() {
		t.Logf("log of %s:\n%s", s.Name, s.Log)
	}
}
