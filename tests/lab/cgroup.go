package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpuPeriod is the period of cpu.max and cpu.cfs_quota_us in µs, the kernel's default.
const cpuPeriod = 100_000

// CPULimit makes a control group, of version 2 or 1, whichever has the CPU controller, whose
// processes together get percent of a core. It returns the file that takes processes into it
// by their pid. At the test's end the group is removed, and what is still in it freed. The
// error is the machine's: most containers may make no group.
func CPULimit(t T, percent int) (procs string, err error) {
	root, file, limit := "/sys/fs/cgroup", "cpu.max", fmt.Sprint(percent*cpuPeriod/100, cpuPeriod)
	if controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err != nil || !strings.Contains(string(controllers), "cpu") {
		root, file, limit = "/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", fmt.Sprint(percent*cpuPeriod/100)
	} else {
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+cpu"), 0o644) // it may be on already
	}
	dir, err := os.MkdirTemp(root, "understudy-")
	if err != nil {
		return "", fmt.Errorf("make a control group: %w", err)
	}
	t.Cleanup(func() {
		Eventually(t, Deadline, "the control group is removed", func() error { return removeGroup(root, dir) })
	})
	if err := os.WriteFile(filepath.Join(dir, file), []byte(limit), 0o644); err != nil {
		return "", fmt.Errorf("limit a control group: %w", err)
	}
	return filepath.Join(dir, procsFile), nil
}

// procsFile takes processes into a group and lists them, in both versions.
const procsFile = "cgroup.procs"

func removeGroup(root, dir string) error {
	left, err := os.ReadFile(filepath.Join(dir, procsFile))
	if err != nil {
		return fmt.Errorf("list the group's processes: %w", err)
	}
	for _, pid := range strings.Fields(string(left)) {
		_ = os.WriteFile(filepath.Join(root, procsFile), []byte(pid), 0o644) // it may have ended
	}
	return os.Remove(dir)
}

// Join takes a process into the group whose file CPULimit returned.
func Join(procs string, pid int) error {
	if err := os.WriteFile(procs, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("take process %d into a control group: %w", pid, err)
	}
	return nil
}
