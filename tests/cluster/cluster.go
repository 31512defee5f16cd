// Package cluster owns a real Kubernetes of one node, in namespaces of its own on this machine, for tests of what a user
// sees: real kubelet, containerd and kube-proxy, the images that `make images` makes, and pods by kubectl.
//
// # How tests use it
//
// `make test-cluster` starts the cluster (a running one is taken as it is), runs the tests of tests/cluster/pods and tests/cluster/webhook, and takes
// the cluster down if it has started it. `make cluster` leaves it running, and then the tests of one kind are
//
//	UNDERSTUDY_CLUSTER=$PWD/.cluster go test -tags vtprotobuf,grpcnotrace -count=1 -v -run TestFirstPod ./tests/cluster/pods/
//
// Without UNDERSTUDY_CLUSTER that package tests nothing, so that `go test ./...` starts no cluster. All tests of a run share
// the one cluster, which its TestMain opens. A test gets a [Namespace] of its own, in which it does everything; at its end the
// namespace goes with its pods, and if the test failed, the state of its pods, their events and logs go to the test's log first:
//
//	func TestFirstPod(t *testing.T) {
//		ns := shared.Namespace(t, "first-pod")
//		ns.Apply(t, manifest)
//		ns.Wait(t, time.Minute, "condition=Ready", "pod/sleep")
//		out := ns.Exec(t, "sleep", "istio-proxy", "pilot-agent", "dns", "table")
//	}
//
// [Namespace.Kubectl] is any command, [Namespace.Pod] what a test looks at of a pod, [Namespace.Watch] the readiness of pods and
// endpoints over time. What a test waits for has a deadline, by [lab.Eventually].
//
// # Load
//
// [Namespace.Load] starts flows of package load, from the node (to a pod's address, a Service or a NodePort) or from inside a
// container of a pod, as its application (outbound, and DNS); [Load.Stop] returns the report, which counts each failed request
// by its reason. It does not need the API server, so kubelet and containerd may be restarted meanwhile. (After a power loss it
// is left in a network that nothing else is in any more: start another.)
//
//	l := ns.Load(t, cluster.FromNode(), load.Flow{Kind: load.HTTP1New, Target: "http://" + ip + "/", Rate: 200})
//	...
//	if report := l.Stop(t); report.Failures() > 0 {
//		t.Errorf("requests failed:\n%v", report)
//	}
//
// Addresses outside of the cluster: [WorldNames] are served at [WorldAddress] by HTTP on 80, HTTPS on 443 (by an authority that
// the image curlimages/curl trusts) and a TCP echo on 9000. A pull of an image that was not imported fails with "not found".
//
// # Faults
//
// [Cluster.Stop] and [Cluster.Start] are a component's, a stop by SIGKILL if one likes; [Cluster.Restart] is both. Pods go on
// without kubelet and containerd. [Cluster.PowerLoss] ends the whole node at once, with every container, and starts it again on
// the same disk. [Cluster.ConfigureKubelet] changes the kubelet's settings for one test. A test with a fault must not run
// beside another one: no t.Parallel in it, nor in what it shares the cluster with.
package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/tests/cluster/internal/cgroup"
	"understudy.mesh/tests/cluster/internal/node"
)

// Addresses outside of the cluster, and the node's.
const (
	NodeAddress  = node.Address
	WorldAddress = node.WorldAddress
)

// WorldNames are the domains of the world outside; every name in them has WorldAddress.
func WorldNames() []string { return []string{"aliyun.com", "world.test"} }

// Cluster is one that runs.
type Cluster struct {
	dir string
}

// stateDir is what the node keeps, below the directory of a cluster.
const stateDir = "node"

func (c *Cluster) state() string { return filepath.Join(c.dir, stateDir) }

// group is the control group of the cluster in a directory. Its name tells two checkouts apart.
func group(dir string) cgroup.Group {
	sum := sha256.Sum256([]byte(dir))
	return cgroup.New(cgroup.Root, "understudy-"+hex.EncodeToString(sum[:4]))
}

// Open returns the cluster of a directory, which `make cluster` has started.
func Open(dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the cluster: %w", err)
	}
	c := &Cluster{dir: dir}
	if _, err := c.pid(); err != nil {
		return nil, err
	}
	return c, nil
}

// pid is the node's first process, as the machine knows it.
func (c *Cluster) pid() (int, error) {
	pid, err := node.Running(c.state())
	if err == nil && pid == 0 {
		err = fmt.Errorf("no cluster runs in %s: make cluster", c.dir)
	}
	return pid, err
}

// Command is a program of the machine in the node's namespaces, with the node's programs in its PATH. It ends with the node.
func (c *Cluster) Command(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	return c.enter(ctx, []string{"--net", "--mount", "--pid", "--ipc", "--uts"}, argv...)
}

// enter is a program in some of the node's namespaces.
func (c *Cluster) enter(ctx context.Context, namespaces []string, argv ...string) (*exec.Cmd, error) {
	pid, err := c.pid()
	if err != nil {
		return nil, err
	}
	return enter(ctx, pid, namespaces, c.environ(), argv...), nil
}

func enter(ctx context.Context, pid int, namespaces, environ []string, argv ...string) *exec.Cmd {
	arguments := append([]string{"--target", strconv.Itoa(pid)}, namespaces...)
	cmd := exec.CommandContext(ctx, "nsenter", append(append(arguments, "--"), argv...)...)
	cmd.Env = environ
	cmd.WaitDelay = time.Second
	return cmd
}

// environ is this process's, for the programs of the node.
func (c *Cluster) environ() []string {
	path := node.BinDir + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"
	return append(os.Environ(), "PATH="+path, "KUBECONFIG="+filepath.Join(c.state(), node.PKI, "admin.kubeconfig"))
}

// KubectlArguments is a kubectl command as a program of the machine: name, arguments, environment. Its files are the machine's.
func (c *Cluster) KubectlArguments(arguments ...string) (argv, environ []string, err error) {
	cmd, err := c.enter(context.Background(), []string{"--net"}, append([]string{c.kubectlBinary()}, arguments...)...)
	if err != nil {
		return nil, nil, err
	}
	return cmd.Args, cmd.Env, nil
}

// Administer is a program with the machine's files in the node's network, which reaches the API server as the administrator and pods by
// their addresses.
func (c *Cluster) Administer(ctx context.Context, argv ...string) (*exec.Cmd, error) {
	return c.enter(ctx, []string{"--net"}, argv...)
}

func (c *Cluster) kubectlBinary() string { return filepath.Join(c.state(), node.Bin, "kubectl") }

// Kubectl runs kubectl and returns its standard output. The error has what it said on the other one.
func (c *Cluster) Kubectl(ctx context.Context, stdin io.Reader, arguments ...string) (string, error) {
	cmd, err := c.enter(ctx, []string{"--net"}, append([]string{c.kubectlBinary()}, arguments...)...)
	if err != nil {
		return "", err
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}

// Component is a program of the node that can be stopped and started.
type Component = node.Component

// The components that tests have reason to stop.
const (
	Kubelet           = node.Kubelet
	Containerd        = node.Containerd
	APIServer         = node.APIServer
	ControllerManager = node.ControllerManager
	CoreDNS           = node.CoreDNS
	Istiod            = node.Istiod
	DefaultIstiod     = node.DefaultIstiod // serves at DefaultIstiodAddress
)

// Stop ends a component with a signal, and returns when it has ended; it stays down until Start.
func (c *Cluster) Stop(ctx context.Context, name Component, signal syscall.Signal) error {
	pid, err := c.pid()
	if err != nil {
		return err
	}
	return node.Dial(pid).Stop(ctx, name, signal)
}

// Start starts a component that is down, and returns when it serves.
func (c *Cluster) Start(ctx context.Context, name Component) error {
	pid, err := c.pid()
	if err != nil {
		return err
	}
	return node.Dial(pid).Start(ctx, name)
}

// Restart ends a component as systemctl restart does, and returns when it serves again.
func (c *Cluster) Restart(ctx context.Context, name Component) error {
	if err := c.Stop(ctx, name, syscall.SIGTERM); err != nil {
		return err
	}
	return c.Start(ctx, name)
}

// PowerLoss ends the node with everything in it at once, and starts it again on what was on its disk. It returns when the
// node reports ready again; its pods are then about to be started again, with other addresses.
func (c *Cluster) PowerLoss(ctx context.Context) error {
	if err := c.PowerOff(ctx); err != nil {
		return err
	}
	return c.PowerOn(ctx)
}

// PowerOff is the first half of PowerLoss.
func (c *Cluster) PowerOff(ctx context.Context) error { return kill(ctx, c.dir) }

// PowerOn is the second half of PowerLoss. A node that runs is left alone.
func (c *Cluster) PowerOn(ctx context.Context) error {
	if _, err := c.pid(); err == nil {
		return nil
	}
	return startNode(ctx, c.dir, func(string) {})
}

// kill ends the node of a directory, if there is one, and removes its control groups.
func kill(ctx context.Context, dir string) error {
	state := filepath.Join(dir, stateDir)
	pid, err := node.Running(state)
	if err != nil {
		return err
	}
	if pid != 0 {
		if err := killProcess(ctx, pid, state); err != nil {
			return fmt.Errorf("end the node: %w", err)
		}
	}
	if err := group(dir).Remove(ctx); err != nil {
		return fmt.Errorf("remove the node's control groups: %w", err)
	}
	return nil
}

// killProcess ends the first process of the node, and with it all others, and returns when they are gone.
func killProcess(ctx context.Context, pid int, state string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The descriptor is the node's only if that still runs: else the number may be another's by now.
	if now, err := node.Running(state); err != nil || now != pid {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pollEvery.Milliseconds()))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("process %d has not ended: %w", pid, ctx.Err())
		}
	}
}

// pollEvery is the pause between two looks at something that gives no event to wait for.
const pollEvery = 100 * time.Millisecond
