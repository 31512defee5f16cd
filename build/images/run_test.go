package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"understudy.mesh/build/contents"
)

// emulator runs programs for arm64 elsewhere; it is linked with nothing, so it runs in an image too.
const emulator = "qemu-aarch64-static"

// extract writes the files of an image into a directory.
func extract(t *testing.T, image v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	content := mutate.Extract(image)
	defer content.Close()
	tarCommand := exec.Command("tar", "-x", "-p", "-C", dir)
	tarCommand.Stdin = content
	if output, err := tarCommand.CombinedOutput(); err != nil {
		t.Fatalf("extract: %v: %s", err, output)
	}
	return dir
}

// container runs programs in an image as a pod does: as its user, on a root that is read-only.
type container struct {
	dir    string
	prefix []string // the emulator, if the image is for another machine
}

func newContainer(t *testing.T, image v1.Image, arch string) container {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "root")
	}
	c := container{dir: extract(t, image)}
	if arch == runtime.GOARCH {
		return c
	}
	path, err := exec.LookPath(emulator)
	if err != nil || arch != "arm64" {
		skip(t, emulator)
	}
	content, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, emulator), content, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.prefix = []string{"/" + emulator}
	return c
}

// run returns what a program wrote to both its outputs. Its path is absolute, since the emulator looks in no PATH.
func (c container) run(t *testing.T, argv ...string) (string, error) {
	t.Helper()
	const script = `mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec chroot --userspec="$USER" "$0" "$@"`
	cmd := exec.CommandContext(t.Context(), "unshare", slices.Concat([]string{"--mount", "sh", "-euc", script, c.dir}, c.prefix, argv)...)
	cmd.Env = []string{contents.Path, "USER=" + contents.User}
	output, err := cmd.CombinedOutput()
	return string(output), err
}

func TestProgramsRunAsInAPod(t *testing.T) {
	type program struct {
		command string
		want    string // among what it prints
		fails   bool
	}
	agent := program{command: "/usr/local/bin/pilot-agent version", want: "client version: "}
	shell := []program{
		{command: "/bin/sh -c echo$IFS$((6*7))", want: "42\n"},
		{command: "/bin/sleep 0"},
	}
	programs := map[string][]program{
		"proxy": append(shell, agent,
			program{command: "/usr/local/bin/envoy --version", want: "version: "},
			program{command: "/usr/local/bin/pilot-agent istio-iptables --dry-run", want: "-A ISTIO_OUTPUT"},
			program{command: "/usr/bin/curl --version", want: "libcurl/"},
			program{command: "/usr/sbin/iptables-restore --version", want: "(nf_tables)"},
			program{command: "/usr/sbin/ip6tables-restore --version", want: "(nf_tables)"},
			program{command: "/usr/sbin/iptables-legacy --version", want: "(legacy)"},
			program{command: "/bin/ls /var/lib/istio", want: "data\n"},
			program{command: "/bin/id", want: "uid=1337(istio-proxy) gid=1337(istio-proxy) groups=1337(istio-proxy)\n"},
			program{command: "/bin/touch /var/lib/istio/data/file", want: "Read-only file system", fails: true},
		),
		"empty":    append(shell, agent, program{command: "/usr/local/bin/pilot-agent wait"}),
		"injector": {{command: "/usr/local/bin/sidecar-injector version", want: "client version: "}},
	}
	forEach(t, func(t *testing.T, c contents.Image, arch string, image v1.Image) {
		in := newContainer(t, image, arch)
		if len(programs[c.Name]) == 0 {
			t.Error("nothing is run in it")
		}
		for _, p := range programs[c.Name] {
			output, err := in.run(t, strings.Fields(p.command)...)
			if (err != nil) != p.fails || !strings.Contains(output, p.want) {
				t.Errorf("%s: %v, wrote %q, want %q", p.command, err, output, p.want)
			}
		}
	})
}

// TestDNSOnARM64 runs the tests of the DNS table as they are for arm64: answers are bytes, and the words of the two
// machines differ.
func TestDNSOnARM64(t *testing.T) {
	if _, err := exec.LookPath(emulator); err != nil {
		skip(t, emulator)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-tags", "vtprotobuf,grpcnotrace", "-trimpath", "-vet=off", "-count=1", "-exec", emulator, "./dnsproxy/table")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	output, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(output), "ok ") {
		t.Errorf("%v:\n%s", err, output)
	}
}
