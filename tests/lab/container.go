package lab

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Users of a pod.
const (
	RootUID  = 0
	AgentUID = 1337 // Istio's, and what the capture rules let pass
	AppUID   = 1000
)

// Where a container of the lab finds things; all of them as in an injected pod.
const (
	AgentPath = "/usr/local/bin/pilot-agent"
	EnvoyPath = "/usr/local/bin/envoy"
	// ConfigMount shows the container's HostConfig directory, read-only.
	ConfigMount = "/config"

	defaultPath = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// ContainerOptions describe a container. The zero value has a writable root, the lab's
// resolv.conf, and no Envoy.
type ContainerOptions struct {
	// ReadOnly makes the root read-only, /tmp and /run included. /etc/istio/proxy,
	// /var/lib/istio/data and /dev/shm stay writable.
	ReadOnly bool
	// ReadOnlyShm makes /dev/shm read-only as well.
	ReadOnlyShm bool
	// Envoy is the host path of what /usr/local/bin/envoy is in the container; "" for none.
	Envoy string
	// ResolvConf is the content of /etc/resolv.conf; "" for the lab's own.
	ResolvConf string
	// NoResolvConf leaves /etc/resolv.conf out.
	NoResolvConf bool
	// Path replaces PATH.
	Path string
}

// Container is a mount namespace with a root of its own in the pod's network namespace. Host
// programs are there (read-only), host configuration and state are not.
type Container struct {
	// HostConfig is the host directory that the container sees as ConfigMount.
	HostConfig string

	lab    *Lab
	holder int // pid of the process that keeps the mount namespace
	path   string
}

// DefaultResolvConf is what containers have in /etc/resolv.conf: the lab's name server, and the
// search list of a Kubernetes pod in namespace "default".
const DefaultResolvConf = "nameserver " + NameServer + "\n" +
	"search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"

// buildRoot makes a root on a tmpfs and moves into it. Arguments: the mount point, read-only
// (0/1), read-only shm (0/1), the agent, the Envoy ("" for none), the config directory, the
// resolv.conf ("" for none), the volumes as "source:destination" words, and then a command, which
// takes the place of the shell. Without one it prints "ready" and keeps the mount namespace alive.
const buildRoot = `
set -eu
root=$1 ro=$2 roshm=$3 agent=$4 envoy=$5 config=$6 resolv=$7 volumes=$8
shift 8
mount --make-rprivate /
mount -t tmpfs -o mode=0755 root "$root"
cd "$root"
mkdir -p usr/local/bin etc proc sys dev/shm tmp run old config etc/istio/proxy etc/istio/config etc/istio/pod var/lib/istio/data
for d in bin sbin lib lib32 lib64 libx32 share; do
	[ -d "/usr/$d" ] || continue
	mkdir "usr/$d"
	mount --bind "/usr/$d" "usr/$d"
	mount -o remount,bind,ro "usr/$d"
	[ "$d" = share ] || ln -s "usr/$d" "$d"
done
cp -a /etc/alternatives /etc/passwd /etc/group /etc/services /etc/protocols etc/
[ ! -e /etc/ethertypes ] || cp -a /etc/ethertypes etc/
printf 'hosts: files dns\npasswd: files\ngroup: files\n' >etc/nsswitch.conf
printf '127.0.0.1 localhost\n::1 localhost\n' >etc/hosts
[ -z "$resolv" ] || cp "$resolv" etc/resolv.conf
# In a PID namespace of its own, /proc is that namespace's.
if [ $$ = 1 ]; then mount -t proc proc proc; else mount --rbind /proc proc; fi
mount --rbind /sys sys
for f in null zero full random urandom; do : >"dev/$f"; mount --bind "/dev/$f" "dev/$f"; done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
bind() { : >"$2"; mount --bind "$1" "$2"; mount -o remount,bind,ro "$2"; }
[ -z "$agent" ] || bind "$agent" usr/local/bin/pilot-agent
[ -z "$envoy" ] || bind "$envoy" usr/local/bin/envoy
mount --bind "$config" config
mount -o remount,bind,ro config
for d in etc/istio/proxy var/lib/istio/data; do mount -t tmpfs -o mode=0777 emptydir "$d"; done
mount -t tmpfs -o mode=1777 shm dev/shm
for v in $volumes; do
	case $v in *:dev/termination-log) : >"${v#*:}"; mount --bind "${v%%:*}" "${v#*:}"; continue;; esac # writable
	if [ -f "${v%%:*}" ]; then bind "${v%%:*}" "${v#*:}"; continue; fi
	mkdir -p "${v#*:}"
	mount --bind "${v%%:*}" "${v#*:}"
done
[ "$roshm" = 0 ] || mount -o remount,bind,ro dev/shm
chmod 1777 tmp
pivot_root . old
cd /
umount -l old
rmdir old
[ "$ro" = 0 ] || mount -o remount,bind,ro /
[ $# = 0 ] || exec "$@"
echo ready
exec sleep infinity
`

// NewContainer makes a container in the pod.
func (l *Lab) NewContainer(t T, o ContainerOptions) *Container {
	t.Helper()
	dir, err := os.MkdirTemp(l.Dir, "container-")
	if err != nil {
		t.Fatalf("lab: make a container's directory: %v", err)
	}
	c := &Container{lab: l, HostConfig: filepath.Join(dir, "config"), path: cmp.Or(o.Path, defaultPath)}
	root := filepath.Join(dir, "root")
	for _, d := range []string{c.HostConfig, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatalf("lab: make a container's directory: %v", err)
		}
	}
	// MkdirTemp's 0700 would hide the configuration from the agent's user.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("lab: open a container's directory: %v", err)
	}
	cmd := l.Pod.Command(context.Background(), "unshare", "--mount", "sh", "-c", buildRoot, "container",
		root, flag(o.ReadOnly), flag(o.ReadOnlyShm), AgentBinary(t), o.Envoy, c.HostConfig, resolvConf(t, dir, o), "")
	c.holder = hold(t, cmd)
	return c
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// resolvConf writes the container's resolv.conf and returns its path, "" for none.
func resolvConf(t T, dir string, o ContainerOptions) string {
	t.Helper()
	if o.NoResolvConf {
		return ""
	}
	path := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(path, []byte(cmp.Or(o.ResolvConf, DefaultResolvConf)), 0o644); err != nil {
		t.Fatalf("lab: write resolv.conf: %v", err)
	}
	return path
}

// hold starts a command that prints "ready" and then stays, and returns its pid.
func hold(t T, cmd *exec.Cmd) int {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("lab: make the container's pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("lab: start the container: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "ready\n" {
		_ = cmd.Wait()
		t.Fatalf("lab: build the container's root: %v: %s", err, stderr.String())
	}
	return cmd.Process.Pid
}

// As says as whom a command runs in a container.
type As struct {
	UID int
	// GID is the group of root, 0 when not set; others are in the group of their number.
	GID int
	// Caps are the capabilities that are left, as setpriv(1) names them ("net_admin"). Others than root have them
	// as a program has whose file has them.
	Caps []string
	// Env is the whole environment, but for PATH.
	Env []string
}

// Command is a command in the container. The chain of exec calls keeps its pid, so that
// cmd.Process is the program itself.
func (c *Container) Command(ctx context.Context, as As, argv ...string) *exec.Cmd {
	holder := strconv.Itoa(c.holder)
	args := []string{"--target", holder, "--mount", "--net", "--", "setpriv", "--no-new-privs"}
	caps := "-all"
	for _, name := range as.Caps {
		caps += ",+" + name
	}
	if as.UID != RootUID {
		uid := strconv.Itoa(as.UID)
		args = append(args, "--reuid", uid, "--regid", uid, "--clear-groups", "--inh-caps="+caps)
		if len(as.Caps) > 0 {
			args = append(args, "--ambient-caps="+caps)
		}
	} else if as.GID != 0 {
		args = append(args, "--regid", strconv.Itoa(as.GID), "--clear-groups")
	}
	args = append(append(args, "--bounding-set="+caps), argv...)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Env = append([]string{"PATH=" + c.path}, as.Env...)
	return cmd
}

// asUser is what goes before a command to run it as a user without capabilities, with further options of setpriv.
func asUser(uid int, options ...string) []string {
	id := strconv.Itoa(uid)
	return append(append([]string{"setpriv"}, options...), "--reuid", id, "--regid", id, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
}

// Result is a command that ended.
type Result struct {
	Code   int // exit status, -1 for a signal
	Stdout string
	Stderr string
}

// Output is both streams, for error messages and for searching.
func (r Result) Output() string { return r.Stdout + r.Stderr }

// String shows a result in a test's failure.
func (r Result) String() string {
	return fmt.Sprintf("exit status %d, stdout:\n%s\nstderr:\n%s", r.Code, r.Stdout, r.Stderr)
}

// Run runs a command to its end, for at most Deadline.
func (c *Container) Run(t T, as As, argv ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	var stdout, stderr strings.Builder
	cmd := c.Command(ctx, as, argv...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("lab: %s: not done within %v: %s%s", strings.Join(argv, " "), Deadline, &stdout, &stderr)
	}
	if cmd.ProcessState == nil {
		t.Fatalf("lab: start %s: %v", strings.Join(argv, " "), err)
	}
	return Result{Code: cmd.ProcessState.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String()}
}
