package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
)

const (
	// agentPatience is how long a command that is run once looks for an agent that may
	// only just be starting; one binds its control socket before all else.
	agentPatience = 5 * time.Second
	// agentPeriod is how often it looks.
	agentPeriod = 200 * time.Millisecond
	// maxAnswer bounds what is read of an agent's JSON: a pod has a few generations.
	maxAnswer = 4 << 20
)

// container is where a command looks for the agent: by the control socket of its own
// container (its mount namespace), or by the ports, which all containers of a pod share.
type container struct {
	control *http.Client
	ports   *http.Client
	// foreign says why the ports may be another container's agent's; nil: they are not.
	foreign func() error
}

func (e *env) container() container {
	return container{
		control: control.NewHTTPClient(),
		ports:   http.DefaultClient,
		foreign: func() error { return foreignPorts(e.handoffDirs(), "/proc/self/net/unix") },
	}
}

// handoffDirs are the hand-off directories that this command can know of: a command
// that is exec'd has its container's environment, or none, and never the agent's flags.
func (e *env) handoffDirs() []string {
	dirs := []string{config.DefaultHandoffDir}
	for _, entry := range e.Environ {
		if dir, ok := strings.CutPrefix(entry, "UNDERSTUDY_HANDOFF_DIR="); ok && dir != "" {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

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
		if isDir(dir) {
			return fmt.Errorf("%w, and the pod's ports may be another container's (there is a hand-off directory, %s)", control.ErrNoAgent, dir)
		}
	}
	other, err := otherAgent(unixSockets)
	if err != nil {
		return fmt.Errorf("%w, and whether another container has one cannot be found out: %w", control.ErrNoAgent, err)
	}
	if other != "" {
		return fmt.Errorf("%w, and the pod's ports are another container's (whose agent holds the socket %s)", control.ErrNoAgent, other)
	}
	return nil
}

// otherAgent finds the control socket of an agent of another mount namespace in a file
// of the form of /proc/net/unix (proc_net(5)); "" is none.
func otherAgent(unixSockets string) (string, error) {
	own, err := control.SocketNames("self")
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
		if isControlName(name) && !slices.Contains(own, name) {
			return name, nil
		}
	}
	return "", lines.Err()
}

// isControlName tells an agent's control socket from other sockets of ours: what follows
// the prefix is a number.
func isControlName(name string) bool {
	rest, ok := strings.CutPrefix(name, control.SocketPrefix)
	return ok && rest != "" && rest[0] >= '0' && rest[0] <= '9'
}

// patiently calls ask until it meets an agent, or agentPatience is over: a command may
// be run before its agent is up. Any other outcome than "nobody is there" is final.
func patiently(ctx context.Context, ask func() error) error {
	deadline := time.Now().Add(agentPatience)
	for {
		err := ask()
		absent := errors.Is(err, control.ErrNoAgent) || errors.Is(err, control.ErrImpostor) || errors.Is(err, unix.ECONNREFUSED)
		if !absent || !time.Now().Before(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(agentPeriod):
		}
	}
}

// errUnknownPath says that the agent has no such path on its control socket: it is of an
// earlier release than this command.
var errUnknownPath = errors.New("the agent is of a release that does not know this question")

// askJSON asks this container's own agent for path and reads its answer into a value;
// body is the answer as it came. [control.ErrNoAgent] and errUnknownPath come as they are.
func (c container) askJSON(ctx context.Context, path string, into any) (body []byte, err error) {
	resp, err := do(ctx, c.control, http.MethodGet, "http://agent"+path, "")
	if errors.Is(err, control.ErrNoAgent) {
		return nil, control.ErrNoAgent
	}
	if err != nil {
		return nil, fmt.Errorf("ask the agent for %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return nil, errUnknownPath
	}
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the agent for %s: HTTP status code %d: %.*s", path, resp.StatusCode, maxReason, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, into); err != nil {
		return nil, fmt.Errorf("read the agent's answer to %s: %w", path, err)
	}
	return body, nil
}
