// Package node owns the inside of the cluster's one machine: namespaces (network, mount, process, IPC, host name) in which
// etcd, the control plane, containerd and the kubelet run as on any node, on addresses that exist nowhere else.
//
// Two processes of it are the command's own. [Init] is the first of the process namespace: whoever kills it ends
// everything in the node. It starts [Run], which mounts, wires, starts the components, says when they are ready, and keeps
// them running.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the node, all of them inside its network namespace.
const (
	Name    = "node1"
	Address = "10.77.0.1"
	gateway = "10.77.0.2" // nobody: no packet leaves the namespace
	// WorldAddress is the world outside.
	WorldAddress = "10.77.0.80"
	services     = "10.96.0.0/16"
	pods         = "10.78.0.0/24"
	// FirstService is the address of the Service kubernetes, the first one of services.
	FirstService = "10.96.0.1"
	// Server is the API server for whoever is in the namespace.
	Server = "https://127.0.0.1:6443"
)

// World are the names of the server outside: those of README's and the manual's ServiceEntry, and one for everything else.
func World() []string { return []string{"aliyun.com", "*.aliyun.com", "world.test", "*.world.test"} }

// Files of the state, and places in the node.
const (
	lockFile   = "node.lock" // held by Init
	home       = "/run/node"
	stateMount = home + "/state"
	controlAt  = home + "/control.sock"
	// BinDir has the programs of the node, for whoever is in it.
	BinDir = stateMount + "/" + Bin
	// HostsDir says where images come from, in containerd's words.
	HostsDir = home + "/etc/certs.d"
)

// Directories of the state. bin has the components, lib is /var/lib of the node, log is /var/log, registry the images.
const (
	Bin        = "bin"
	lib        = "lib"
	Log        = "log"
	PKI        = "pki"
	Registry   = "registry"
	KubeletDir = "kubelet.d" // drop-ins of the kubelet's configuration, *.conf
	Istio      = "istio"     // what istiod reads
	// DefaultMesh is the mesh configuration of the other istiod there.
	DefaultMesh = "default-mesh.yaml"
)

// Config is what the node is told when it starts.
type Config struct {
	// State is the directory on the machine that outlives the node.
	State string
	// CgroupRoot is the control group below which pods are, as the kubelet has it.
	CgroupRoot string
}

// MakeDirectories makes those of the state, or finds them made.
func MakeDirectories(state string) error {
	for _, dir := range []string{Bin, PKI, Registry, KubeletDir, Log, lib + "/kubelet", lib + "/containerd", lib + "/etcd", lib + "/cni"} {
		if err := os.MkdirAll(filepath.Join(state, dir), 0o755); err != nil {
			return fmt.Errorf("make the node's directories: %w", err)
		}
	}
	return nil
}

// Step is a line of what a node says while it starts: what was done, or that it is Ready, or what Failed.
type Step struct {
	Done   string `json:"done,omitempty"`
	Ready  bool   `json:"ready,omitempty"`
	Failed string `json:"failed,omitempty"`
}

// Init is the first process of the node. It starts runCommand (the command line of Run) with the file progress as its fourth
// one, adopts and reaps what others leave behind, and returns when Run's process has ended.
func Init(c Config, runCommand []string, progress *os.File) error {
	if err := checkNamespace(); err != nil {
		return err
	}
	lock, err := holdLock(c.State)
	if err != nil {
		return err
	}
	defer lock.Close()
	child, err := os.StartProcess("/proc/self/exe", runCommand, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, progress},
	})
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	_ = progress.Close() // the reader sees its end with Run's process
	for {
		var status syscall.WaitStatus
		switch ended, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the node's processes: %w", err)
		case ended == child.Pid:
			return fmt.Errorf("the node's own process ended (exit status %d, signal %v)", status.ExitStatus(), status.Signal())
		}
	}
}

// checkNamespace refuses a process that is not in a new process namespace, so not in a node: it would mount over the
// machine's own directories. In a new one /proc is still the machine's, in which a process has another number than its own.
func checkNamespace() error {
	inProc, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("look whether this is a node: %w", err)
	}
	if inProc == strconv.Itoa(os.Getpid()) {
		return errors.New("this is the machine itself, not a node: make cluster starts one in namespaces of its own")
	}
	return nil
}

// holdLock takes the lock that says that there is a node, for as long as this process lives: a record lock, of which anybody
// can ask whose it is, and which no child inherits.
func holdLock(state string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(state, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the node: %w", err)
	}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		return nil, errors.Join(fmt.Errorf("lock the node: %w", err), f.Close())
	}
	return f, nil
}

// Running returns the process ID of the node of a state, in the process namespace of the caller; 0 is none.
func Running(state string) (pid int, err error) {
	f, err := os.Open(filepath.Join(state, lockFile))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look for the node: %w", err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("look for the node: %w", err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, nil
	}
	return int(lock.Pid), nil
}

// Run is the node: it makes everything ready, tells each step to progress, and then keeps the components running until ctx
// ends. It ends with an error when a step fails, or when nobody reads the steps any more before it is ready.
func Run(ctx context.Context, c Config, progress io.WriteCloser) error {
	if err := checkNamespace(); err != nil {
		return err
	}
	steps := json.NewEncoder(progress)
	s := newSupervisor(c)
	err := start(ctx, c, s, func(done string) error { return steps.Encode(Step{Done: done}) })
	if err != nil {
		return errors.Join(err, steps.Encode(Step{Failed: err.Error()}))
	}
	if err := errors.Join(steps.Encode(Step{Ready: true}), progress.Close()); err != nil {
		return fmt.Errorf("nobody waits for the node: %w", err)
	}
	<-ctx.Done()
	return nil
}

func start(ctx context.Context, c Config, s *supervisor, done func(string) error) error {
	if err := mountAll(c); err != nil {
		return err
	}
	if err := wire(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(Name)); err != nil {
		return fmt.Errorf("name the node: %w", err)
	}
	if err := writeFiles(); err != nil {
		return err
	}
	if err := serveRegistry(); err != nil {
		return err
	}
	if err := s.serveControl(); err != nil {
		return err
	}
	if err := done("namespaces, mounts, network"); err != nil {
		return err
	}
	began := time.Now()
	for _, phase := range phases(c) {
		if err := s.startAll(ctx, phase, done); err != nil {
			return err
		}
	}
	return waitForAPI(ctx, began, done)
}
