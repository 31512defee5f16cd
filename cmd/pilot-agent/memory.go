package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// memoryFiles have a control group's limit (cgroups(7)), by the type of its file system: versions 1 and 2.
var memoryFiles = map[string]string{"cgroup": "memory.limit_in_bytes", "cgroup2": "memory.max"}

// noLimit is beyond every limit: version 1 says that there is none by the largest number that it can hold.
const noLimit = math.MaxInt64 / 2

// memoryLimit is how much memory this process's control group may have, in bytes; 0 where there is no limit, or none can be read. root
// is that of the file system. A limit of a group above holds as well, as far as a container sees it.
func memoryLimit(root string) int64 {
	limit := int64(noLimit)
	for _, line := range linesOf(root, "proc/self/mountinfo") {
		before, after, _ := strings.Cut(line, " - ")
		mount, fs := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(fs) < 3 || memoryFiles[fs[0]] == "" {
			continue
		}
		group, ok := groupPath(root, fs[0] == "cgroup2")
		if !ok || fs[0] == "cgroup" && !slices.Contains(strings.Split(fs[2], ","), "memory") {
			continue
		}
		top := filepath.Join(root, mount[4])
		for dir := filepath.Join(top, below(mount[3], group)); ; dir = filepath.Dir(dir) {
			text, _ := os.ReadFile(filepath.Join(dir, memoryFiles[fs[0]]))                                // the topmost group has none
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 { // "max" is no number
				limit = min(limit, n)
			}
			if len(dir) <= len(top) {
				break
			}
		}
	}
	if limit >= noLimit {
		return 0
	}
	return limit
}

// groupPath is this process's group in the hierarchy that has the memory: the one of version 2, or one of version 1.
func groupPath(root string, unified bool) (string, bool) {
	for _, line := range linesOf(root, "proc/self/cgroup") {
		parts := strings.SplitN(line, ":", 3) // the number of the hierarchy, its controllers, the path
		if len(parts) == 3 && (unified && parts[0] == "0" || slices.Contains(strings.Split(parts[1], ","), "memory")) {
			return parts[2], true
		}
	}
	return "", false
}

// below is a group's path from the group on that is mounted; "/" for a group that is not below it, of which nothing is to be seen.
func below(mounted, group string) string {
	rest, ok := strings.CutPrefix(group, strings.TrimSuffix(mounted, "/"))
	if !ok || rest != "" && rest[0] != '/' {
		return "/"
	}
	return filepath.Join("/", rest) // a group beside the one that a namespace begins at has dots
}

func linesOf(root, file string) []string {
	text, _ := os.ReadFile(filepath.Join(root, file)) // without it nothing is known
	return strings.Split(string(text), "\n")
}
