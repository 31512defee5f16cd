package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// socketPrefix is the start of the name of every agent's control socket. The number of
// the agent's mount namespace follows.
const socketPrefix = "@understudy-"

// maxNames is how many names the control socket can have. Any process of the pod can take
// an abstract name, and the agent then uses the next one. More names would not help: a
// process that takes four can take more.
const maxNames = 4

// SocketName returns the abstract Unix socket name (unix(7)) of the agent in the mount
// namespace of a process, which is given as in /proc: "self" or a pid. The containers of a
// pod share the network namespace, and so all abstract names; the mount namespace tells
// one container from another. A command that is exec'd into a container shares it with the
// agent, whatever its environment is. An abstract name needs no writable file system.
func SocketName(process string) (string, error) {
	mount, err := os.Readlink(filepath.Join("/proc", process, "ns/mnt"))
	if err != nil {
		return "", fmt.Errorf("find the mount namespace of process %s (is /proc mounted?): %w", process, err)
	}
	return socketPrefix + strings.TrimSuffix(strings.TrimPrefix(mount, "mnt:["), "]"), nil
}

// ownSocketNames returns every name that the agent of this process's mount namespace can
// have: [SocketName], and that with -2, -3 and -4 appended.
func ownSocketNames() ([]string, error) {
	first, err := SocketName("self")
	if err != nil {
		return nil, err
	}
	names := []string{first}
	for n := 2; n <= maxNames; n++ {
		names = append(names, fmt.Sprintf("%s-%d", first, n))
	}
	return names, nil
}
