package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// socketPrefix begins the name of every agent's control socket; the id of the agent's
// mount namespace follows.
const socketPrefix = "@understudy-"

// maxNames is how many names the control socket has: any process of the pod can
// take an abstract name, and the agent then takes the next one that no process of another
// user holds. More would only help against somebody who takes as many as there are.
const maxNames = 4

// SocketName returns the abstract Unix socket name (unix(7)) of the agent that
// lives in the mount namespace of a process, which is named as in /proc: "self", or
// its pid. Both containers of a pod share the network namespace, and with it all
// abstract names; the mount namespace is what tells one container from the other,
// and an exec'd command shares it with its container's agent whatever its
// environment is. An abstract name needs no writable file system.
func SocketName(process string) (string, error) {
	mount, err := os.Readlink(filepath.Join("/proc", process, "ns/mnt"))
	if err != nil {
		return "", fmt.Errorf("find the mount namespace of process %s (is /proc mounted?): %w", process, err)
	}
	return socketPrefix + strings.TrimSuffix(strings.TrimPrefix(mount, "mnt:["), "]"), nil
}

// ownSocketNames returns every name that the agent of this process's mount namespace may
// have: [SocketName], and the same with -2, -3 and -4 behind it.
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
