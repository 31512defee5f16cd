package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/tests/cluster/internal/build"
	"understudy.mesh/tests/cluster/internal/node"
	"understudy.mesh/tests/cluster/internal/pki"
)

// Config says which cluster, and what it is made of.
type Config struct {
	// Root is the repository.
	Root string
	// Dir is the cluster's own directory, Cache the one of the programs that were built, which other checkouts may share.
	Dir, Cache string
	// Istio adds an istiod.
	Istio bool
	// Say is told each step when it is done, and what takes long before it begins.
	Say func(string)
}

const (
	// DownLimit is how long the end of a cluster may take, which nobody interrupts.
	DownLimit = time.Minute
	// command is the program that a node is, in its directory of programs; loader makes load.
	command = "understudy-cluster"
	loader  = "understudy-load"
	// versionsFile holds what the node's programs were built from.
	versionsFile = "versions"
)

// Up starts the cluster, or finds it running; images that are new are imported. If it cannot, or ctx ends, nothing of it is
// left but the logs.
func Up(ctx context.Context, c Config) (*Cluster, error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the cluster's directory: %w", err)
	}
	c.Dir = dir
	if err := missing(dir); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, c)
	if err != nil {
		return nil, err
	}
	defer unlock()
	cluster := &Cluster{dir: dir}
	started, err := c.ensureRunning(ctx)
	if err == nil {
		err = c.importImages(ctx, cluster)
	}
	if err == nil && c.Istio {
		err = cluster.StartIstiod(ctx, c)
	}
	if err != nil && started {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), DownLimit)
		defer cancel()
		return nil, errors.Join(err, down(clean, dir))
	}
	if err != nil {
		return nil, err
	}
	return cluster, nil
}

// lock lets one process at a time start or end the cluster of a directory.
func lock(ctx context.Context, c Config) (unlock func(), err error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cluster's directory: %w", err)
	}
	unlock, err = build.Lock(ctx, filepath.Join(c.Dir, "lock"), func() { c.Say("waiting for another make cluster or cluster-down here") })
	if err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	return unlock, nil
}

// ensureRunning starts the node, or finds it running. started is that it was begun, also if that failed.
func (c Config) ensureRunning(ctx context.Context) (started bool, err error) {
	state := filepath.Join(c.Dir, stateDir)
	programs, versions, err := c.programs(ctx)
	if err != nil {
		return false, err
	}
	pid, err := node.Running(state)
	if err != nil {
		return false, err
	}
	if pid != 0 {
		if has, err := os.ReadFile(filepath.Join(state, versionsFile)); err != nil || string(has) != versions {
			return false, fmt.Errorf("the cluster in %s runs other programs than this checkout has: make cluster-down, then make cluster", c.Dir)
		}
		return false, nil
	}
	// What a node left that did not end by Down: it may be half made. And the logs of the last one.
	if err := down(ctx, c.Dir); err != nil {
		return false, err
	}
	if err := os.RemoveAll(state); err != nil {
		return false, fmt.Errorf("remove the last node's logs: %w", err)
	}
	if err := c.prepare(programs, versions); err != nil {
		return true, err
	}
	return true, startNode(ctx, c.Dir, c.Say)
}

// programs builds those of the node; by directory, the names in it.
func (c Config) programs(ctx context.Context) (programs map[string][]string, versions string, err error) {
	builder := build.Builder{Root: c.Root, Cache: c.Cache, Say: c.Say}
	programs = make(map[string][]string)
	var names []string
	for _, project := range build.Projects() {
		dir, err := builder.Build(ctx, project)
		if err != nil {
			return nil, "", err
		}
		programs[dir] = project.Binaries
		names = append(names, filepath.Base(dir))
	}
	return programs, strings.Join(names, "\n") + "\n", nil
}

// prepare makes the state of a new node.
func (c Config) prepare(programs map[string][]string, versions string) error {
	state := filepath.Join(c.Dir, stateDir)
	if err := node.MakeDirectories(state); err != nil {
		return err
	}
	bin := filepath.Join(state, node.Bin)
	for dir, names := range programs {
		if err := build.Link(dir, bin, names...); err != nil {
			return err
		}
	}
	// Copies: make builds these anew.
	if err := build.Copy(c.Dir, bin, command, loader); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(state, versionsFile), []byte(versions), 0o644); err != nil {
		return fmt.Errorf("write the node's versions: %w", err)
	}
	return pki.Write(filepath.Join(state, node.PKI), pki.Config{
		Server: node.Server, Node: node.Name, World: node.World(),
		Names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPs:   []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(node.Address), net.ParseIP(node.FirstService)},
	})
}

// InitCommand and NodeCommand are the words by which the command is started as the node's first processes.
const (
	InitCommand = "node-init"
	NodeCommand = "node"
)

// startNode starts a node on the state of a directory, and returns when pods can run.
func startNode(ctx context.Context, dir string, done func(string)) error {
	state := filepath.Join(dir, stateDir)
	g := group(dir)
	if err := g.Create(); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(state, node.Log, "node.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	defer log.Close()
	progress, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	defer progress.Close()
	// Not CommandContext: the node outlives this process.
	cmd := exec.Command(filepath.Join(state, node.Bin, command), InitCommand, state, g.Path())
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = "/", log, log, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true, // a Ctrl-C at the terminal is not for it
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	go func() { _ = cmd.Wait() }() // so that it leaves no zombie if it ends before this process
	stop := context.AfterFunc(ctx, func() { _ = progress.SetReadDeadline(time.Now()) })
	defer stop()
	if err := node.ReadSteps(progress, done); err != nil {
		_ = cmd.Process.Kill()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%w (the node's log is %s)", err, log.Name())
	}
	return nil
}

// Down ends the cluster of a directory and removes all of it but the logs. That there is none is no error.
func Down(ctx context.Context, c Config) error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return fmt.Errorf("find the cluster's directory: %w", err)
	}
	c.Dir = dir
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	unlock, err := lock(ctx, c)
	if err != nil {
		return err
	}
	defer unlock()
	return down(ctx, dir)
}

func down(ctx context.Context, dir string) error {
	if err := kill(ctx, dir); err != nil {
		return err
	}
	state := filepath.Join(dir, stateDir)
	entries, err := os.ReadDir(state)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the node's state: %w", err)
	}
	for _, e := range entries {
		if e.Name() == node.Log {
			continue
		}
		if err := os.RemoveAll(filepath.Join(state, e.Name())); err != nil {
			return fmt.Errorf("remove the node's state: %w", err)
		}
	}
	return nil
}

// missing says all that this machine lacks for a cluster.
func missing(dir string) error {
	var lacks []string
	lack := func(what string) {
		if what != "" {
			lacks = append(lacks, what)
		}
	}
	if os.Geteuid() != 0 {
		lack(fmt.Sprintf("root (this is uid %d): run it in a root shell", os.Geteuid()))
	}
	for program, pkg := range map[string]string{"nsenter": "util-linux", "runc": "runc", "nft": "nftables", "iptables": "iptables", "conntrack": "conntrack"} {
		if !isProgram(program) {
			lack(program + " in PATH (Debian package " + pkg + ")")
		}
	}
	plugins := []string{"/usr/lib/cni/bridge", "/opt/cni/bin/bridge"}
	if !slices.ContainsFunc(plugins, isFile) {
		lack("the CNI plugins, as " + strings.Join(plugins, " or ") + " (Debian package containernetworking-plugins)")
	}
	lack(group(dir).Missing())
	if bridge := "/proc/sys/net/bridge"; !isFile(bridge) && exec.Command("modprobe", "br_netfilter").Run() != nil {
		lack(bridge + ": the kernel's module br_netfilter")
	}
	if len(lacks) == 0 {
		return nil
	}
	slices.Sort(lacks)
	return fmt.Errorf("a cluster cannot run here; it lacks:\n  %s", strings.Join(lacks, "\n  "))
}

func isFile(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// isProgram looks in Debian's sbin directories as well, which are not in every user's PATH.
func isProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil || isFile("/usr/sbin/"+name) || isFile("/sbin/"+name)
}
