package control

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// foreignPorts decides whether a command that finds no agent in its own container may
// ask the pod's ports, as Istio's commands do. It may where its container is the only
// one with an agent. In a pod that is made for hot upgrades it may not: there the ports
// are answered by the generation that serves, in the other container, while this
// container's agent is still starting or has ended: `wait` would let the pod go on too
// early, and the drain of a preStop hook would hit the generation that serves.
//
// Two things tell such a pod. A hand-off directory is there (the default one, or the
// environment's); and, when only the agent's flag names that, another mount namespace's
// agent holds its control socket: their abstract names are, like the ports, the network
// namespace's (unix(7)), and an agent binds its own before any port.
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

// otherAgent finds the control socket of an agent of another mount namespace in a file
// of the form of /proc/net/unix (proc_net(5)); "" is none.
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

// isSocketName tells an agent's control socket from other sockets of ours: what follows
// the prefix is a number.
func isSocketName(name string) bool {
	rest, ok := strings.CutPrefix(name, socketPrefix)
	return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}
