// Package build owns the programs of the cluster's node: what they are made of (a go.mod of its own for each project below
// tests/cluster/gomod, never the product's) and the directory in which what was built is kept, by version.
package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/sys/unix"
)

// Project is a set of programs that are built together.
type Project struct {
	// Name is the directory of its go.mod, below Modules.
	Name string
	// module is the one whose version is the project's.
	module   string
	packages []string
	tags     string
	// versionVars are what the linker sets to the version; majorMinor are those of Kubernetes besides.
	versionVars []string
	kubernetes  bool
	// Binaries are the programs' names.
	Binaries []string
	// Long is how long it takes on two free cores, with nothing built before; said before it begins.
	Long time.Duration
}

// Modules is where the projects' go.mod are, from the root of the repository.
const Modules = "tests/cluster/gomod"

const (
	kubernetesVersion = "k8s.io/component-base/version"
	// logShown is how much of a failed build's output an error shows.
	logShown = 3000
)

// Projects are those of every node.
func Projects() []Project {
	kubernetes := Project{
		Name: "k8s", module: "k8s.io/kubernetes", kubernetes: true, Long: 10 * time.Minute,
		Binaries: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl", "kube-proxy"},
	}
	for _, name := range kubernetes.Binaries {
		kubernetes.packages = append(kubernetes.packages, "k8s.io/kubernetes/cmd/"+name)
	}
	const containerd = "github.com/containerd/containerd/v2"
	return []Project{kubernetes, {
		Name: "etcd", module: "go.etcd.io/etcd/server/v3", Long: time.Minute,
		packages: []string{"go.etcd.io/etcd/server/v3"}, Binaries: []string{"etcd"},
	}, {
		Name: "containerd", module: containerd, Long: 2 * time.Minute,
		packages: []string{containerd + "/cmd/containerd", containerd + "/cmd/containerd-shim-runc-v2", containerd + "/cmd/ctr"},
		// ctr wants to be of containerd's own version, which both know by the linker.
		versionVars: []string{containerd + "/version.Version"},
		tags:        "osusergo,netgo,no_btrfs,no_devmapper,no_zfs",
		Binaries:    []string{"containerd", "containerd-shim-runc-v2", "ctr"},
	}, {
		Name: "coredns", module: "github.com/coredns/coredns", Long: 2 * time.Minute,
		packages: []string{"github.com/coredns/coredns"}, Binaries: []string{"coredns"},
	}}
}

// Istiod is the control plane of Istio and the tool of its users, for a node that is asked for them.
func Istiod() Project {
	return Project{
		Name: "istiod", module: "istio.io/istio", Long: 6 * time.Minute, tags: "vtprotobuf,disable_pgv",
		packages: []string{"istio.io/istio/pilot/cmd/pilot-discovery", "istio.io/istio/istioctl/cmd/istioctl"},
		Binaries: []string{"pilot-discovery", "istioctl"},
	}
}

// IstioAgent is the agent that Understudy stands in for, of the same release.
func IstioAgent() Project {
	return Project{
		Name: "istio-agent", module: "istio.io/istio", Long: 4 * time.Minute, tags: "vtprotobuf,disable_pgv",
		packages: []string{"istio.io/istio/pilot/cmd/pilot-agent"}, Binaries: []string{"pilot-agent"},
	}
}

// IstioCNI is the plugin by which Istio captures a pod's traffic in the place of its init container, of the same release.
func IstioCNI() Project {
	return Project{
		Name: "istio-cni", module: "istio.io/istio", Long: 3 * time.Minute, tags: "vtprotobuf,disable_pgv",
		packages: []string{"istio.io/istio/cni/cmd/istio-cni"},
		Binaries: []string{"istio-cni"},
	}
}

// Builder builds projects of one checkout into a cache, which other checkouts may use at the same time.
type Builder struct {
	// Root is the repository's, Cache the directory of what was built.
	Root, Cache string
	// Say is told what takes long, before it begins.
	Say func(string)
}

// Build returns the directory with the project's binaries: out of the cache, or built now.
func (b Builder) Build(ctx context.Context, p Project) (dir string, err error) {
	version, key, err := b.identify(p)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", p.Name, err)
	}
	dir = filepath.Join(b.Cache, strings.Join([]string{p.Name, version, key}, "-"))
	if isComplete(dir, p) {
		return dir, nil
	}
	if err := os.MkdirAll(b.Cache, 0o755); err != nil {
		return "", fmt.Errorf("make the cache of programs: %w", err)
	}
	unlock, err := b.lock(ctx, p)
	if err != nil {
		return "", err
	}
	defer unlock()
	if isComplete(dir, p) { // by whoever had the lock
		return dir, nil
	}
	b.Say(fmt.Sprintf("building %s %s, once (about %v on two free cores if Go has none of it yet)", p.Name, version, p.Long))
	if err := b.compile(ctx, p, version, dir); err != nil {
		return "", fmt.Errorf("build %s %s: %w", p.Name, version, err)
	}
	return dir, nil
}

// identify returns the project's version, and a key of all that its binaries are made of.
func (b Builder) identify(p Project) (version, key string, err error) {
	hash := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(b.Root, Modules, p.Name, name))
		if err != nil {
			return "", "", err
		}
		hash.Write(text)
		if name == "go.mod" {
			if version, err = requiredVersion(text, p.module); err != nil {
				return "", "", err
			}
		}
	}
	fmt.Fprintf(hash, "%s %q", runtime.Version(), p.arguments(version))
	return version, hex.EncodeToString(hash.Sum(nil))[:12], nil
}

func requiredVersion(goMod []byte, module string) (string, error) {
	file, err := modfile.ParseLax("go.mod", goMod, nil)
	if err != nil {
		return "", err
	}
	for _, r := range file.Require {
		if r.Mod.Path == module {
			return r.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("its go.mod does not require %s", module)
}

// arguments are those of go build, but for where to write.
func (p Project) arguments(version string) []string {
	ld := []string{"-s", "-w"}
	for _, name := range p.versionVars {
		ld = append(ld, "-X", name+"="+strings.TrimPrefix(version, "v"))
	}
	if p.kubernetes {
		numbers := strings.Split(strings.TrimPrefix(version, "v"), ".")
		ld = append(ld, "-X", kubernetesVersion+".gitVersion="+version, "-X", kubernetesVersion+".gitMajor="+numbers[0], "-X", kubernetesVersion+".gitMinor="+numbers[1])
	}
	arguments := []string{"-trimpath", "-buildvcs=false", "-ldflags", strings.Join(ld, " ")}
	if p.tags != "" {
		arguments = append(arguments, "-tags", p.tags)
	}
	return append(arguments, p.packages...)
}

// compile builds into a directory beside, which gets its name when all is there.
func (b Builder) compile(ctx context.Context, p Project, version, dir string) error {
	cache, err := filepath.Abs(b.Cache) // go build runs in another directory
	if err != nil {
		return err
	}
	out, err := os.MkdirTemp(cache, "building-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(out)
	arguments := append([]string{"build", "-o", out + "/"}, p.arguments(version)...)
	if len(p.packages) == 1 { // a package's last element need not be the program's name
		arguments[2] = filepath.Join(out, p.Binaries[0])
	}
	cmd := exec.CommandContext(ctx, "go", arguments...)
	cmd.Dir = filepath.Join(b.Root, Modules, p.Name)
	// What is built does not depend on how this program was started.
	cmd.Env = append(environWithout("GOFLAGS", "GOWORK", "GOOS", "GOARCH"), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	cmd.WaitDelay = time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		text := output.Bytes()
		return fmt.Errorf("go build in %s: %w: %s", cmd.Dir, err, bytes.TrimSpace(text[max(0, len(text)-logShown):]))
	}
	if !isComplete(out, p) {
		return fmt.Errorf("go build made other programs than %q", p.Binaries)
	}
	_ = os.RemoveAll(dir) // what somebody left incomplete
	return os.Rename(out, dir)
}

// ModuleDir is where the source is of a module that a project's go.mod requires, which is downloaded if it is not there; root is the
// repository's.
func ModuleDir(ctx context.Context, root string, p Project, module string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(root, Modules, p.Name)
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find the module %s: %w: %s%s", module, err, out, bytes.TrimSpace(stderr.Bytes())) // -json says it on stdout
	}
	var found struct{ Dir string }
	if err := json.Unmarshal(out, &found); err != nil || found.Dir == "" {
		return "", fmt.Errorf("find the module %s: go mod download says %q", module, out)
	}
	return found.Dir, nil
}

func environWithout(names ...string) []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(names, name)
	})
}

func isComplete(dir string, p Project) bool {
	return !slices.ContainsFunc(p.Binaries, func(name string) bool {
		info, err := os.Stat(filepath.Join(dir, name))
		return err != nil || info.Size() == 0
	})
}

// lock lets one process at a time build a project into the cache.
func (b Builder) lock(ctx context.Context, p Project) (unlock func(), err error) {
	unlock, err = Lock(ctx, filepath.Join(b.Cache, p.Name+".lock"), func() { b.Say("waiting for another build of " + p.Name) })
	if err != nil {
		return nil, fmt.Errorf("lock the cache of programs: %w", err)
	}
	return unlock, nil
}

// lockEvery is the pause between two attempts to get a lock: the kernel's wait cannot be ended by a context.
const lockEvery = 200 * time.Millisecond

// Lock takes the lock of the file at path, which it makes, until unlock is called or this process ends. waiting is called
// once, when somebody else has it.
func Lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := flock(ctx, f, waiting); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

func flock(ctx context.Context, f *os.File, waiting func()) error {
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for first := true; ; first = false {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// Link gives the binaries of a directory names in another one as well: links where it can, else copies.
func Link(from, to string, names ...string) error {
	return each(from, to, names, func(source, target string) error {
		if os.Link(source, target) == nil {
			return nil
		}
		return copyFile(source, target)
	})
}

// Copy copies binaries.
func Copy(from, to string, names ...string) error { return each(from, to, names, copyFile) }

func each(from, to string, names []string, put func(source, target string) error) error {
	for _, name := range names {
		target := filepath.Join(to, name)
		err := os.Remove(target) // it may be running, and is not written over
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		if err == nil {
			err = put(filepath.Join(from, name), target)
		}
		if err != nil {
			return fmt.Errorf("put %s into the node: %w", name, err)
		}
	}
	return nil
}

func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
