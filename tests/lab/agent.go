package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Ports of the contract.
const (
	AdminPort    = "15000"
	OutboundPort = "15001"
	InboundPort  = "15006"
	StatusPort   = "15020"
	HealthPort   = "15021"
	DNSPort      = "15053"
	EnvoyStats   = "15090"
)

// TerminationDrain is the drain time that the lab's agents are given: long enough to observe
// what goes on meanwhile, short enough for a test.
const TerminationDrain = time.Second

// logDelay bounds the wait for the rest of a dead agent's log: a process that outlives it, which
// would be a fault of its own, holds the other end of the pipe.
const logDelay = 2 * time.Second

// AgentOptions say how an agent is started. The zero value is the agent of an injected pod in
// --configDir mode, with DNS capture and VIPs.
type AgentOptions struct {
	Args []string // further arguments of `proxy sidecar`
	Env  []string // further or overriding environment
	UID  int      // AgentUID when 0
	// Caps are the agent's capabilities. Without a UID it is root then, with the group
	// AgentUID, as Istio's pod template has it in TPROXY mode.
	Caps []string
	// ConfigDir is --configDir; the container's ConfigMount/mesh when "".
	ConfigDir string
	// Files is the hard limit of open files; 0 leaves it as it is.
	Files int
	// PID1 runs the agent as the first process of a PID namespace of its own.
	PID1 bool
}

// Agent is one `pilot-agent proxy sidecar`.
type Agent struct {
	Container *Container
	Log       *Log // its standard output and error, with Envoy's

	cmd  *exec.Cmd
	pid1 bool
	lab  *Lab
	done chan struct{} // closed once it was reaped and its log is whole
	// ended is when it was reaped, to be read once done is closed.
	ended time.Time
	// termination is the host path of a slot's /dev/termination-log.
	termination string
}

// Message is what the container's last state says (kubectl describe pod): the content of a slot's termination log, of which
// the kubelet reads the last 4096 bytes.
func (a *Agent) Message() string {
	text, _ := os.ReadFile(a.termination)
	return string(text[max(0, len(text)-4096):])
}

// ConfigDir returns the host side of the directory that the agent reads by default.
func (c *Container) ConfigDir() string { return filepath.Join(c.HostConfig, "mesh") }

// Write puts a file into the agent's configuration directory, by a rename, as an editor or
// ConfigMap update does.
func (c *Container) Write(t T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(c.ConfigDir(), 0o755); err != nil {
		t.Fatalf("lab: make the configuration directory: %v", err)
	}
	temporary := filepath.Join(c.HostConfig, ".new-"+name)
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		t.Fatalf("lab: write %s: %v", name, err)
	}
	if err := os.Rename(temporary, filepath.Join(c.ConfigDir(), name)); err != nil {
		t.Fatalf("lab: put %s in place: %v", name, err)
	}
}

// Remove takes a file, or whatever has its name, out of the configuration directory.
func (c *Container) Remove(t T, name string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(c.ConfigDir(), name)); err != nil {
		t.Fatalf("lab: remove %s: %v", name, err)
	}
}

// Capture runs the init step (`istio-iptables`) with the flags of an injected pod and NET_ADMIN
// and NET_RAW only, in a container of its own.
func (l *Lab) Capture(t T, extra ...string) {
	t.Helper()
	init := l.NewContainer(t, ContainerOptions{})
	if got := init.Iptables(t, extra...); got.Code != 0 {
		t.Fatalf("lab: istio-iptables: %v", got)
	}
}

// Iptables runs the init step in this container and returns how it ended.
// The environment says what an injected pod of a dual-stack cluster says.
func (c *Container) Iptables(t T, extra ...string) Result {
	t.Helper()
	return c.IptablesAs(t, InitUser(), extra...)
}

// IptablesAs is Iptables as somebody else.
func (c *Container) IptablesAs(t T, as As, extra ...string) Result {
	t.Helper()
	argv := append([]string{AgentPath, "istio-iptables", "-p", OutboundPort, "-z", InboundPort, "-u", "1337",
		"-g", "1337", "-m", "REDIRECT", "-i", "*", "-x", "", "-b", "*", "-d", "15090,15021,15020", "--redirect-dns"}, extra...)
	return c.Run(t, as, argv...)
}

// InitUser is what an init container runs as: root with the two capabilities that the rules need.
func InitUser(env ...string) As {
	return As{UID: RootUID, Caps: []string{"net_admin", "net_raw"}, Env: env}
}

// environment is what the agent of an injected pod has in its environment.
func environment() []string {
	return []string{
		"POD_NAME=app-0", "POD_NAMESPACE=default", "INSTANCE_IP=" + PodIP, "SERVICE_ACCOUNT=default",
		"ISTIO_META_DNS_CAPTURE=true", "ISTIO_META_DNS_AUTO_ALLOCATE=true",
		fmt.Sprintf("PROXY_CONFIG={terminationDrainDuration: %s, concurrency: 2}", TerminationDrain),
	}
}

// StartAgent starts an agent in the container. It is killed when the test ends; when the test
// failed, its log is shown.
func (c *Container) StartAgent(t T, o AgentOptions) *Agent {
	t.Helper()
	uid := cmp.Or(o.UID, AgentUID)
	argv := []string{AgentPath, "proxy", "sidecar", "--domain", "default.svc.cluster.local"}
	if o.ConfigDir == "" {
		o.ConfigDir = ConfigMount + "/mesh"
		if err := os.MkdirAll(c.ConfigDir(), 0o755); err != nil {
			t.Fatalf("lab: make the configuration directory: %v", err)
		}
	}
	argv = append(argv, "--configDir", o.ConfigDir)
	a := &Agent{Container: c, Log: newLog(), lab: c.lab, pid1: o.PID1, done: make(chan struct{})}
	as := As{UID: uid, Caps: o.Caps, Env: append(environment(), o.Env...)}
	if len(o.Caps) > 0 && o.UID == 0 {
		uid = RootUID
		as.UID, as.GID = uid, AgentUID
	}
	argv = append(argv, o.Args...)
	if o.Files > 0 {
		argv = append([]string{"/bin/sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, o.Files), "limited"}, argv...)
	}
	if o.PID1 {
		as.UID, as.Caps = RootUID, []string{"sys_admin", "setuid", "setgid", "setpcap"}
		argv = append(inPIDNamespace(uid), argv...)
	}
	a.cmd = c.Command(context.Background(), as, argv...)
	if err := a.start(uid, a.cmd.Start); err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() { a.end(t) })
	return a
}

// start runs the command, by calling run, with its output on a pipe that belongs to its user, as a
// container runtime makes it: /dev/stdout can be opened.
func (a *Agent) start(uid int, run func() error) error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make the agent's pipe: %w", err)
	}
	if err := w.Chown(uid, uid); err != nil {
		return fmt.Errorf("give the agent its pipe: %w", err)
	}
	a.cmd.Stdout, a.cmd.Stderr = w, w
	if err := run(); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	_ = w.Close()
	copied := make(chan struct{})
	go func() {
		_, _ = io.Copy(a.Log, r)
		_ = r.Close()
		close(copied)
	}()
	go func() {
		_ = a.cmd.Wait()
		a.ended = time.Now()
		select {
		case <-copied: // the log is whole
		case <-time.After(logDelay):
		}
		close(a.done)
	}()
	return nil
}

// inPIDNamespace is what goes before a command to make it PID 1 as the given user.
func inPIDNamespace(uid int) []string {
	return append([]string{"unshare", "--pid", "--mount-proc", "--fork", "--kill-child"}, asUser(uid)...)
}

func (a *Agent) end(t T) {
	_ = a.cmd.Process.Kill()
	<-a.done
	if t.Failed() {
		t.Logf("log of the agent (pid %d):\n%s", a.PID(), a.Log)
	}
}

// PID is the agent's process, as the host numbers it.
func (a *Agent) PID() int {
	if a.pid1 {
		for _, pid := range namespacePIDs(a.lab.Pod.Name) {
			if parent, err := parentOf(pid); err == nil && parent == a.cmd.Process.Pid {
				return pid
			}
		}
	}
	return a.cmd.Process.Pid
}

// Signal sends a signal to the agent.
func (a *Agent) Signal(s syscall.Signal) { _ = syscall.Kill(a.PID(), s) }

// WaitExec waits until the process is the agent's program, and none of those that prepare it.
func (a *Agent) WaitExec(t T) {
	t.Helper()
	Eventually(t, Deadline, "the agent is executed", a.executed)
}

func (a *Agent) executed() error {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", a.PID()))
	if err == nil && filepath.Base(exe) != filepath.Base(AgentPath) {
		err = fmt.Errorf("it is still %s", exe)
	}
	return err
}

// Done is closed when the agent has ended.
func (a *Agent) Done() <-chan struct{} { return a.done }

// Wait waits for the agent's end and returns its exit status, -1 for a signal.
func (a *Agent) Wait(t T, d time.Duration) int {
	t.Helper()
	select {
	case <-a.done:
		return a.cmd.ProcessState.ExitCode()
	case <-time.After(d):
		t.Fatalf("the agent has not ended within %v", d)
		return 0
	}
}

// WaitReady waits until the kubelet's probe would find the agent ready.
func (a *Agent) WaitReady(t T) {
	t.Helper()
	a.WaitReadyWithin(t, Deadline)
}

// WaitReadyWithin is WaitReady with another deadline.
func (a *Agent) WaitReadyWithin(t T, d time.Duration) {
	t.Helper()
	Eventually(t, d, "the agent is ready", func() error {
		select {
		case <-a.done:
			t.Fatalf("the agent ended before it was ready: %v", a.cmd.ProcessState)
		default:
		}
		return a.Ready()
	})
}

// Ready asks 15021 from inside the pod and returns nil for a 200.
func (a *Agent) Ready() error {
	status, body, err := a.lab.Pod.Get("http://127.0.0.1:" + HealthPort + "/healthz/ready")
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return fmt.Errorf("status %d: %s", status, strings.TrimSpace(body))
	}
	return nil
}

// Client returns an HTTP client whose connections come from inside the namespace.
func (n *Namespace) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: n.Dial, DisableKeepAlives: true}, Timeout: Deadline}
}

// HTTP2 returns a transport of HTTP/2 with prior knowledge whose connections come from inside the namespace.
func (n *Namespace) HTTP2() *http.Transport {
	transport := &http.Transport{DialContext: n.Dial, Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	return transport
}

// Get fetches a URL with a literal address from inside the namespace.
func (n *Namespace) Get(url string) (status int, body string, err error) {
	return n.Request(http.MethodGet, url)
}

// Request does an HTTP request without a body from inside the namespace.
func (n *Namespace) Request(method, url string) (status int, body string, err error) {
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := n.Client().Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// EnvoyPID returns the pid of the Envoy that is the agent's descendant, 0 when there is none.
func (a *Agent) EnvoyPID() int {
	for _, pid := range namespacePIDs(a.lab.Pod.Name) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && filepath.Base(exe) == "envoy" && isDescendant(pid, a.PID()) {
			return pid
		}
	}
	return 0
}

// Processes lists the pids in the pod's namespace that are neither the test's nor a container's holder.
func (l *Lab) Processes() []string {
	var list []string
	for _, pid := range namespacePIDs(l.Pod.Name) {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		name := strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
		if err == nil && name != "" && name != "sleep infinity" {
			list = append(list, fmt.Sprintf("%d %s", pid, name))
		}
	}
	return list
}

// isDescendant follows parents from pid up to ancestor.
func isDescendant(pid, ancestor int) bool {
	for pid > 1 {
		if pid == ancestor {
			return true
		}
		parent, err := parentOf(pid)
		if err != nil {
			return false
		}
		pid = parent
	}
	return false
}

func parentOf(pid int) (int, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	var parent int
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "PPid: %d", &parent); err == nil {
			return parent, nil
		}
	}
	return 0, errors.New("no PPid line")
}

// WriteMeshConfig writes a mesh configuration file, which containers see as ConfigMount/mesh.yaml.
func (c *Container) WriteMeshConfig(t T, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.HostConfig, "mesh.yaml"), []byte(content), 0o644); err != nil {
		t.Fatalf("lab: write the mesh configuration: %v", err)
	}
}
