package cgroup

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree makes files with their content below a new directory, as the kernel would have them.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func read(t *testing.T, elements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// version2 is a machine with version 2 alone, in which a group has the files that the kernel gives each new one.
var version2 = map[string]string{
	"cgroup.controllers":     "cpuset cpu io memory hugetlb pids rdma misc",
	"cgroup.subtree_control": "",
	"cgroup.procs":           "1\n",
	// The kernel would make these with the directory.
	"ours/cgroup.controllers":     "cpuset cpu io memory hugetlb pids",
	"ours/cgroup.subtree_control": "",
	"ours/cgroup.procs":           "",
}

// version1 is one with version 1, and version 2 beside it.
var version1 = map[string]string{
	"cpu,cpuacct/cgroup.procs":          "1\n",
	"cpuset/cgroup.procs":               "1\n",
	"cpuset/cpuset.cpus":                "0-3\n",
	"cpuset/cpuset.mems":                "0\n",
	"cpuset/ours/cpuset.cpus":           "",
	"cpuset/ours/cpuset.mems":           "",
	"cpuset/ours/cgroup.clone_children": "0",
	"cpuset/ours/cgroup.procs":          "",
	"memory/cgroup.procs":               "1\n",
	"pids/cgroup.procs":                 "1\n",
	"unified/cgroup.procs":              "1\n",
	"unified/cgroup.controllers":        "",
}

func TestCreateVersion2(t *testing.T) {
	root := tree(t, version2)
	g := New(root, "ours")
	if missing := g.Missing(); missing != "" {
		t.Errorf("missing: %s", missing)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, filepath.Join(root, "ours")} {
		if got := read(t, dir, "cgroup.subtree_control"); got != "+cpuset +cpu +io +memory +hugetlb +pids" {
			t.Errorf("%s hands down %q", dir, got)
		}
	}
	if got := g.Path(); got != "/ours" {
		t.Errorf("the kubelet's cgroupRoot is %q", got)
	}
}

func TestCreateVersion1(t *testing.T) {
	root := tree(t, version1)
	g := New(root, "ours")
	if missing := g.Missing(); missing != "" {
		t.Errorf("missing: %s", missing)
	}
	for range 2 { // the second finds it made
		if err := g.Create(); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"cpuset.cpus": "0-3", "cpuset.mems": "0", "cgroup.clone_children": "1"} {
		if got := read(t, root, "cpuset", "ours", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	for dir, want := range map[string]bool{"cpu,cpuacct": true, "memory": true, "pids": true, "unified": false} {
		if _, err := os.Stat(filepath.Join(root, dir, "ours")); (err == nil) != want {
			t.Errorf("a group in %s: %v, want %v", dir, err == nil, want)
		}
	}
}

func TestMissing(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"no control groups":               {},
		"version 2 without a controller":  {"cgroup.controllers": "cpu memory pids", "cgroup.procs": ""},
		"version 1 without a hierarchy":   {"cpu/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": ""},
		"directories that are no mounts":  {"cpuset/file": "", "cpu/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": ""},
		"version 2 that handed down none": {"cgroup.controllers": "\n", "cgroup.procs": ""},
	} {
		if missing := New(tree(t, files), "ours").Missing(); !strings.Contains(missing, "cpuset") {
			t.Errorf("%s: %q does not name cpuset", name, missing)
		}
	}
}

// TestRemove wants all of the group to go, in each hierarchy, and nothing beside it.
func TestRemove(t *testing.T) {
	for name, dirs := range map[string][]string{
		"version 1": {"cpu/ours/kubepods/pod1/c1", "memory/ours/kubepods", "cpu/theirs", "unified/ours"},
		"version 2": {"ours/kubepods/pod1/c1", "theirs"},
	} {
		root := tree(t, map[string]string{})
		for _, dir := range dirs {
			if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if name == "version 2" {
			if err := os.WriteFile(filepath.Join(root, controllersFile), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		} else {
			for _, top := range []string{"cpu", "memory", "unified"} {
				if err := os.WriteFile(filepath.Join(root, top, procsFile), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 { // the second finds none
			if err := New(root, "ours").Remove(t.Context()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		left, err := filepath.Glob(filepath.Join(root, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(left, func(path string) bool { return strings.Contains(path, "ours") }) {
			t.Errorf("%s: left: %q", name, left)
		}
		if theirs, _ := filepath.Glob(filepath.Join(root, "*", "theirs")); len(theirs) == 0 && name == "version 1" {
			t.Errorf("%s: another's group is gone", name)
		}
	}
}

// TestRemoveWaits wants a group that stays busy to be named, and the wait to end with the context.
func TestRemoveWaits(t *testing.T) {
	// A directory with a file cannot be removed: so is a group with a process.
	root := tree(t, map[string]string{"cgroup.controllers": "", "ours/kubepods/busy": ""})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := New(root, "ours").Remove(ctx)
	if err == nil || !strings.Contains(err.Error(), filepath.Join(root, "ours", "kubepods")) {
		t.Errorf("a busy group: %v", err)
	}
}

func TestProcesses(t *testing.T) {
	root := tree(t, map[string]string{
		"cpuset/cgroup.procs":                                 "1\n", // the container is in none of this hierarchy
		"memory/cgroup.procs":                                 "1\n",
		"memory/ours/kubepods/pod-1/0123abcd/cgroup.procs":    "41\n42\n",
		"memory/ours/kubepods/pod-1/ffff0000/cgroup.procs":    "43\n",
		"memory/theirs/kubepods/pod-9/99999999/cgroup.procs":  "9\n",
		"memory/ours/kubepods/pod-1/bad00000bad/cgroup.procs": "x\n",
	})
	g := New(root, "ours")
	if pids, err := g.Processes("0123abcd"); err != nil || !slices.Equal(pids, []int{41, 42}) {
		t.Errorf("%v, %v", pids, err)
	}
	for _, part := range []string{"99999999", "bad00000bad"} {
		if pids, err := g.Processes(part); err == nil {
			t.Errorf("%s: %v, want an error", part, pids)
		}
	}
}
