package main

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
)

// TestMemoryLimit reads the limit of trees as kernels and container runtimes show them.
func TestMemoryLimit(t *testing.T) {
	const (
		v1mount = "40 31 0:32 %s /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory"
		v2mount = "40 31 0:32 %s /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
	)
	mount := func(line, root string) string {
		return "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + strings.Replace(line, "%s", root, 1) + "\n"
	}
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  int64
	}{
		{"version 2 in a container", map[string]string{
			"proc/self/mountinfo": mount(v2mount, "/"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "134217728\n"}, 128 << 20},
		{"version 2 without a limit", map[string]string{
			"proc/self/mountinfo": mount(v2mount, "/"), "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 0},
		{"version 2 of the machine: the group above has less", map[string]string{
			"proc/self/mountinfo": mount(v2mount, "/"), "proc/self/cgroup": "0::/kubepods/pod1/c\n",
			"sys/fs/cgroup/kubepods/pod1/c/memory.max": "max\n", "sys/fs/cgroup/kubepods/pod1/memory.max": "1000\n", "sys/fs/cgroup/kubepods/memory.max": "9000\n"}, 1000},
		{"version 2: a group that is not mounted", map[string]string{
			"proc/self/mountinfo": mount(v2mount, "/kubepods/pod1"), "proc/self/cgroup": "0::/kubepods/pod11\n",
			"sys/fs/cgroup/1/memory.max": "5\n", "sys/fs/cgroup/memory.max": "7000\n"}, 7000},
		{"version 1 in a container", map[string]string{
			"proc/self/mountinfo": mount(v1mount, "/kubepods/pod1/c"), "proc/self/cgroup": "5:cpu,cpuacct:/other\n4:memory:/kubepods/pod1/c\n0::/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "1073741824\n", "sys/fs/cgroup/memory/memory.max": "1"}, 1 << 30},
		{"version 1 of the machine", map[string]string{
			"proc/self/mountinfo": mount(v1mount, "/"), "proc/self/cgroup": "4:memory:/a/b\n",
			"sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "2000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 2000},
		{"version 1 without a limit", map[string]string{
			"proc/self/mountinfo": mount(v1mount, "/"), "proc/self/cgroup": "4:memory:/\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		{"both, the memory in version 1", map[string]string{
			"proc/self/mountinfo": mount(v1mount, "/") + "41 31 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "proc/self/cgroup": "4:memory:/m\n0::/u\n",
			"sys/fs/cgroup/memory/m/memory.limit_in_bytes": "3000\n"}, 3000},
		{"another controller of version 1", map[string]string{
			"proc/self/mountinfo": "40 31 0:32 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", "proc/self/cgroup": "4:memory:/\n",
			"sys/fs/cgroup/pids/memory.limit_in_bytes": "4000\n"}, 0},
		{"nothing mounted", nil, 0},
		{"no file that makes sense", map[string]string{
			"proc/self/mountinfo": "x - cgroup2\n" + mount(v2mount, "/"), "proc/self/cgroup": "0\n0::/a/../..\n", "sys/fs/cgroup/memory.max": "-5\n"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := memoryLimit(root); got != tc.want {
				t.Errorf("%d, want %d", got, tc.want)
			}
		})
	}
}

// TestMemoryLimitIsSet: it is in force before anything else happens, wherever it was set.
func TestMemoryLimitIsSet(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	var out bytes.Buffer
	e := &cli.Env{
		Args:    []string{"proxy", "--configDir", t.TempDir(), "--binaryPath", filepath.Join(t.TempDir(), "none")},
		Environ: []string{`PROXY_CONFIG={"proxyMetadata":{"GOMEMLIMIT":"3GiB"}}`, "GOGC=100"}, Stdout: &out, Stderr: &out,
	}
	if status := run(t.Context(), e); status == 0 {
		t.Error("it ran without an Envoy")
	}
	if got := debug.SetMemoryLimit(-1); got != 3<<30 {
		t.Errorf("the runtime's limit is %d\n%s", got, out.String())
	}
}

// TestCollectorIsTuned: under istiod for little memory from the first, with files for a quick start; never against $GOGC.
func TestCollectorIsTuned(t *testing.T) {
	const own = 321
	defer debug.SetGCPercent(debug.SetGCPercent(own))
	for _, tc := range []struct {
		name, arg string
		environ   []string
		want      int
	}{
		{"files", "--configDir=" + t.TempDir(), nil, startGCPercent},
		{"istiod", "--concurrency=1", nil, settledGCPercent},
		{"by the environment", "--concurrency=1", []string{"GOGC=321"}, own},
	} {
		debug.SetGCPercent(own)
		var out bytes.Buffer
		e := &cli.Env{
			Args:    []string{"proxy", "--binaryPath", filepath.Join(t.TempDir(), "none"), "--configPath", t.TempDir(), tc.arg},
			Environ: tc.environ, Stdout: &out, Stderr: &out,
		}
		if status := run(t.Context(), e); status == 0 {
			t.Errorf("%s: it ran without an Envoy", tc.name)
		}
		if got := debug.SetGCPercent(own); got != tc.want {
			t.Errorf("%s: the collector's percentage is %d, want %d\n%s", tc.name, got, tc.want, out.String())
		}
	}
}
