package node

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// files is the configuration of the components. It names places in the node alone, so it is the same everywhere.
//
//go:embed etc
var files embed.FS

// configuration is where each of them is, below home.
var configuration = map[string]string{
	"containerd.toml": "etc/containerd.toml",
	"hosts.toml":      "etc/certs.d/_default/hosts.toml",
	"kubelet.yaml":    "etc/kubelet.yaml",
	"bridge.conflist": "etc/net.d/10-pods.conflist",
	"Corefile":        "etc/Corefile",
	"resolv.conf":     "etc/resolv.conf",
}

// writeFiles writes the configuration of the components.
func writeFiles() error {
	for name, place := range configuration {
		text, err := files.ReadFile("etc/" + name)
		if err != nil {
			return fmt.Errorf("read the built-in %s: %w", name, err)
		}
		if err := writeFile(filepath.Join(home, place), text); err != nil {
			return err
		}
	}
	return bindFile(filepath.Join(home, configuration["resolv.conf"]), "/etc/resolv.conf")
}

func writeFile(name string, content []byte) error {
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, content, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write the node's configuration: %w", err)
	}
	return nil
}

// tunables are the machine's settings that the kubelet writes, with the values that it wants
// (k8s.io/component-helpers/node/util/sysctl). They belong to no namespace.
var tunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// mountAll makes the node's file system: the machine's, but for what a node writes all over it.
func mountAll(c Config) error {
	// Opened first: what is mounted below may cover the way to it.
	state, err := os.Open(c.State)
	if err != nil {
		return fmt.Errorf("open the node's state: %w", err)
	}
	defer state.Close()
	if err := privateRoot(); err != nil {
		return err
	}
	if err := checkOverlay(c.State); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	if err := mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{stateMount, "/run/lock", "/run/netns"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the node's /run: %w", err)
		}
	}
	if err := bind(fmt.Sprintf("/proc/self/fd/%d", state.Fd()), stateMount); err != nil {
		return err
	}
	if err := bind(filepath.Join(stateMount, lib), "/var/lib"); err != nil {
		return err
	}
	if err := bind(filepath.Join(stateMount, Log), "/var/log"); err != nil {
		return err
	}
	return hideTunables()
}

// privateRoot keeps what the node mounts to itself, and lets its containers see it, as the kubelet wants.
func privateRoot() error {
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
}

// hideTunables shows the kubelet the settings as it wants them, so that it changes none on the machine.
func hideTunables() error {
	for name, wanted := range tunables {
		target := filepath.Join("/proc/sys", name)
		now, err := os.ReadFile(target)
		if errors.Is(err, os.ErrNotExist) || strings.TrimSpace(string(now)) == wanted {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the machine's settings: %w", err)
		}
		copied := filepath.Join(home, "sysctl", name)
		if err := writeFile(copied, []byte(wanted+"\n")); err != nil {
			return err
		}
		if err := bind(copied, target); err != nil {
			return err
		}
	}
	return nil
}

// checkOverlay mounts what containerd will for each container, where it will.
func checkOverlay(state string) error {
	dir, err := os.MkdirTemp(state, "overlay-")
	if err != nil {
		return fmt.Errorf("try an overlay: %w", err)
	}
	defer os.RemoveAll(dir)
	options := make([]string, 0, 3)
	for _, option := range []string{"lowerdir", "upperdir", "workdir"} {
		path := filepath.Join(dir, option)
		if err := os.Mkdir(path, 0o755); err != nil {
			return fmt.Errorf("try an overlay: %w", err)
		}
		options = append(options, option+"="+path)
	}
	target := filepath.Join(dir, "merged")
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("try an overlay: %w", err)
	}
	if err := unix.Mount("overlay", target, "overlay", 0, strings.Join(options, ",")); err != nil {
		return fmt.Errorf("containers need overlayfs, and %s cannot have one (mount: %w): the kernel lacks it (modprobe overlay), "+
			"or the directory lies on an overlay itself, as in a container: name one on a disk with CLUSTER_DIR=DIR", state, err)
	}
	if err := unix.Unmount(target, 0); err != nil {
		return fmt.Errorf("try an overlay: unmount it: %w", err)
	}
	return nil
}

// bind shows a directory or file in another place. It is a mount of its own there: what is mounted in it does not appear in
// the first place as well.
func bind(source, target string) error {
	if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	if err := mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	return mount("", target, "", unix.MS_SHARED, "")
}

// bindFile is bind for a file that may be missing, or a link into /run, which is empty here.
func bindFile(source, target string) error {
	for {
		link, err := os.Readlink(target)
		if err != nil {
			break
		}
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(target), link)
		}
		target = link
	}
	if strings.HasPrefix(target, "/run/") {
		if err := writeFile(target, nil); err != nil {
			return err
		}
	}
	if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
		return nil // the machine has none, and gets none
	}
	return bind(source, target)
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s %s on %s: %w", kind, source, target, err)
	}
	return nil
}
