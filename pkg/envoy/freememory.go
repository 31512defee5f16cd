package envoy

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryGroup is where a version of control groups tells of a container's memory, seen from within it.
type memoryGroup struct{ dir, limit, used, cache string }

var memoryGroups = [...]memoryGroup{
	{"sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"},
	{"sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
}

// freeMemory is how many bytes more this container may use before the kernel ends something of it: what its limit leaves, counted as
// the kubelet does, without files that can be read again, and no more than what the node has. root is that of the file system.
func freeMemory(root string) (bytes int64, ok bool) {
	free := int64(math.MaxInt64)
	if kib, found := fieldOf(filepath.Join(root, "proc/meminfo"), "MemAvailable:"); found {
		free = kib << 10
	}
	for _, g := range memoryGroups {
		dir := filepath.Join(root, g.dir)
		limit, limited := numberIn(filepath.Join(dir, g.limit))
		used, known := numberIn(filepath.Join(dir, g.used))
		if !limited || !known {
			continue
		}
		cache, _ := fieldOf(filepath.Join(dir, "memory.stat"), g.cache)
		free = min(free, max(0, limit-max(0, used-cache)))
	}
	return free, free < math.MaxInt64
}

// numberIn reads a file that has a number; "max" is none.
func numberIn(path string) (int64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// fieldOf reads the number after a name at the beginning of a line.
func fieldOf(path, name string) (int64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
