package control

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// foreignPorts returns why a command that finds no agent in its own container must not
// ask the pod's ports, as Istio's commands do; nil if it may, because no other container
// has an agent. In a pod that is made for hot upgrades another container has one: the
// generation that serves answers at the ports there, while this container's agent still
// starts or has ended. `wait` would let the pod go on too early, and the drain of a preStop
// hook would drain the generation that serves.
//
// Such a pod has a hand-off directory, the default one or that of the environment. If only
// a flag of the agent names the directory, the control socket of an agent in another mount
// namespace shows it: abstract names are those of the network namespace, as ports are
// (unix(7)), and an agent binds its name before any port.
func foreignPorts(dirs []string, unixSockets string) error {
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return fmt.Errorf("%w, and the pod's ports may be another container's (there is a hand-off directory, %s)", ErrNoAgent, dir)
		}
	}
	other, err := otherAgent(unixSockets)
	if err != nil {
		return fmt.Errorf("%w, and whether another container has one cannot be found out: %w", ErrNoAgent, err)
	}
	if other != "" {
		return fmt.Errorf("%w, and the pod's ports are another container's (whose agent holds the socket %s)", ErrNoAgent, other)
	}
	return nil
}

// otherAgent returns the control socket of an agent in another mount namespace, "" if there
// is none. It reads a file in the format of /proc/net/unix (proc_net(5)).
func otherAgent(unixSockets string) (string, error) {
	own, err := ownSocketNames()
	if err != nil {
		return "", err
	}
	f, err := os.Open(unixSockets)
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name := lines.Text()[strings.LastIndexByte(lines.Text(), ' ')+1:]
		if isSocketName(name) && !slices.Contains(own, name) {
			return name, nil
		}
	}
	return "", lines.Err()
}

// isSocketName tells an agent's control socket from our other sockets: a number follows
// the prefix.
func isSocketName(name string) bool {
	rest, ok := strings.CutPrefix(name, socketPrefix)
	return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}
