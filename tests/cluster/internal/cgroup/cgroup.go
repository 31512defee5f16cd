// Package cgroup owns the control group below which everything that the cluster's kubelet makes lives: it is made
// before the kubelet starts and is gone, with all below it, after the node.
//
// Both versions of control groups: in version 1 the group is one directory in each hierarchy, in version 2 one
// directory with the controllers handed down to it.
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// Root is where the kernel's control groups are mounted.
	Root = "/sys/fs/cgroup"
	// procsFile is in every directory that is a group, controllersFile in those of version 2 alone.
	procsFile       = "cgroup.procs"
	controllersFile = "cgroup.controllers"
	delegationFile  = "cgroup.subtree_control"
	// A group whose last process has just ended is busy for some milliseconds more.
	removeEvery = 20 * time.Millisecond
)

// needed are the controllers without which the kubelet does not start.
var needed = []string{"cpu", "cpuset", "memory", "pids"}

// wanted are handed down in version 2 where the kernel has them.
var wanted = append([]string{"hugetlb", "io"}, needed...)

// Group is a group of one name, in whatever version and hierarchies the machine has.
type Group struct {
	root, name string
}

// New is the group of that name below the root of the hierarchies. It makes nothing.
func New(root, name string) Group { return Group{root, name} }

// Path is the group as the kubelet's cgroupRoot has it.
func (g Group) Path() string { return "/" + g.name }

// unified reports whether the machine has version 2 alone.
func (g Group) unified() bool {
	_, err := os.Stat(filepath.Join(g.root, controllersFile))
	return err == nil
}

// hierarchies are the directories that are the top of a hierarchy. What cannot be read has none.
func (g Group) hierarchies() []string {
	if g.unified() {
		return []string{g.root}
	}
	entries, _ := os.ReadDir(g.root)
	var tops []string
	for _, e := range entries {
		// Links are second names: cpu -> cpu,cpuacct.
		top := filepath.Join(g.root, e.Name())
		if _, err := os.Stat(filepath.Join(top, procsFile)); e.IsDir() && err == nil {
			tops = append(tops, top)
		}
	}
	return tops
}

// Missing names what the machine lacks for a kubelet, in words; "" is a machine that will do.
func (g Group) Missing() string {
	var has []string
	if g.unified() {
		text, _ := os.ReadFile(filepath.Join(g.root, controllersFile))
		has = strings.Fields(string(text))
	} else {
		for _, top := range g.hierarchies() {
			has = append(has, strings.Split(filepath.Base(top), ",")...)
		}
	}
	lacking := slices.DeleteFunc(slices.Clone(needed), func(c string) bool { return slices.Contains(has, c) })
	if len(lacking) == 0 {
		return ""
	}
	return fmt.Sprintf("control groups with the controllers %s: %s has %q (in a container, start it with --privileged and --cgroupns=host)",
		strings.Join(lacking, ", "), g.root, has)
}

// Create makes the group, or finds it made.
func (g Group) Create() error {
	if g.unified() {
		return g.createUnified()
	}
	for _, top := range g.hierarchies() {
		if _, err := os.Stat(filepath.Join(top, controllersFile)); err == nil {
			continue // version 2 beside version 1: without controllers, and nobody asks for it
		}
		if err := g.createIn(top); err != nil {
			return err
		}
	}
	return nil
}

// createIn makes the group in one hierarchy of version 1. A new group of cpuset takes no process before it has
// processors and memory nodes.
func (g Group) createIn(top string) error {
	dir := filepath.Join(top, g.name)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the control group: %w", err)
	}
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if err := inherit(top, dir, file); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "cpuset.cpus")); err == nil {
		return write(filepath.Join(dir, "cgroup.clone_children"), "1")
	}
	return nil
}

// inherit copies a file of the group above, where it has one.
func inherit(from, to, file string) error {
	value, err := os.ReadFile(filepath.Join(from, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the control group above: %w", err)
	}
	return write(filepath.Join(to, file), strings.TrimSpace(string(value)))
}

func (g Group) createUnified() error {
	dir := filepath.Join(g.root, g.name)
	if err := delegate(g.root); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the control group: %w", err)
	}
	return delegate(dir)
}

// delegate hands the wanted controllers of a group of version 2 down to the groups below it.
func delegate(dir string) error {
	has, err := os.ReadFile(filepath.Join(dir, controllersFile))
	if err != nil {
		return fmt.Errorf("read the controllers of a control group: %w", err)
	}
	var on []string
	for _, controller := range strings.Fields(string(has)) {
		if slices.Contains(wanted, controller) {
			on = append(on, "+"+controller)
		}
	}
	err = write(filepath.Join(dir, delegationFile), strings.Join(on, " "))
	if errors.Is(err, syscall.EBUSY) {
		return fmt.Errorf("%w: processes are in the group itself, so that none below it can have controllers: "+
			"move them into a group of their own first (mkdir %s, and write each pid of %s into the %s of that one)",
			err, filepath.Join(dir, "init"), filepath.Join(dir, procsFile), procsFile)
	}
	return err
}

// write writes a value to a file of the kernel's, which is there already.
func write(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write %q to a control group: %w", value, err)
	}
	return nil
}

// Remove removes the group with all below it. It waits for processes that are about to be gone until ctx ends; that
// there is no such group is no error.
func (g Group) Remove(ctx context.Context) error {
	tick := time.NewTicker(removeEvery)
	defer tick.Stop()
	for {
		err := g.removeOnce()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-tick.C:
		}
	}
}

func (g Group) removeOnce() error {
	var errs []error
	for _, top := range g.hierarchies() {
		dirs, err := below(filepath.Join(top, g.name))
		errs = append(errs, err)
		for _, dir := range slices.Backward(dirs) {
			// Files in it are the kernel's, and no obstacle.
			if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove the control group %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// below lists a group and those below it, the parent first.
func below(dir string) (dirs []string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	return dirs, err
}

// Processes are the processes of the group below this one whose name holds part: a container's by its ID.
func (g Group) Processes(part string) ([]int, error) {
	for _, top := range g.hierarchies() {
		dirs, err := below(filepath.Join(top, g.name))
		if err != nil {
			return nil, fmt.Errorf("look through the control groups: %w", err)
		}
		i := slices.IndexFunc(dirs, func(dir string) bool { return strings.Contains(filepath.Base(dir), part) })
		if i < 0 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dirs[i], procsFile))
		if err != nil {
			return nil, fmt.Errorf("list the processes of a control group: %w", err)
		}
		var pids []int
		for _, field := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %q is no process", dirs[i], field)
			}
			pids = append(pids, pid)
		}
		return pids, nil
	}
	return nil, fmt.Errorf("no control group *%s* below %s", part, g.Path())
}
