package deb

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/build/oci"
)

// makeDeb makes a package, as root's, of a shell script that makes its files in the current directory.
func makeDeb(t *testing.T, dir, name, script string) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs dpkg-deb, and CI=true allows no skip")
		}
		t.Skip("this test needs dpkg-deb")
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "DEBIAN"), 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: " + name + "\nVersion: 1:2.0-3\nArchitecture: amd64\nMaintainer: Somebody <somebody@example.com>\nDescription: a package\n of a test\n"
	for file, content := range map[string]string{"control": control, "md5sums": "d41d8cd98f00b204e9800998ecf8427e  bin/tool\n"} {
		if err := os.WriteFile(filepath.Join(root, "DEBIAN", file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, name+".deb")
	make := exec.Command("sh", "-euc", "umask 022; chmod 0755 . DEBIAN; chmod 0644 DEBIAN/*; "+script+`; exec dpkg-deb --root-owner-group --build . "$0"`, file)
	make.Dir = root
	if output, err := make.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return file
}

// describe shows files as lines: path, mode, owner, and content or where a link leads.
func describe(files []oci.File) []string {
	var lines []string
	for _, f := range files {
		if f.Link != "" {
			f.Mode = fs.ModeSymlink // its permissions mean nothing
		}
		lines = append(lines, fmt.Sprintf("%s %v %d:%d %s%s", f.Path, f.Mode, f.UID, f.GID, f.Link, strings.ReplaceAll(string(f.Content), "\n", "|")))
	}
	return lines
}

func unpackAll(t *testing.T, files ...string) []Package {
	t.Helper()
	packages, err := Unpack(t.Context(), files)
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func TestUnpack(t *testing.T) {
	file := makeDeb(t, t.TempDir(), "tool", `
		mkdir -p bin lib64 tmp usr/share/doc/tool/examples usr/share/man/man1 usr/share/doc
		printf tool >bin/tool; chmod 4755 bin/tool; ln bin/tool bin/twin
		ln -s /lib/ld.so lib64/ld.so
		chmod 1777 tmp
		printf free >usr/share/doc/tool/copyright; printf new >usr/share/doc/tool/changelog.gz; printf how >usr/share/doc/tool/examples/first
		ln -s tool usr/share/doc/tool-doc; printf page >usr/share/man/man1/tool.1`)
	got := unpackAll(t, file)
	if len(got) != 1 || got[0].Name != "tool" || got[0].Version != "1:2.0-3" {
		t.Fatalf("read %q in version %q", got[0].Name, got[0].Version)
	}
	want := []string{
		"/tmp dtrwxrwxrwx 0:0 ",
		"/usr drwxr-xr-x 0:0 ",
		"/usr/bin drwxr-xr-x 0:0 ",
		"/usr/bin/tool urwxr-xr-x 0:0 tool",
		"/usr/bin/twin urwxr-xr-x 0:0 tool",
		"/usr/lib64 drwxr-xr-x 0:0 ",
		"/usr/lib64/ld.so L--------- 0:0 /lib/ld.so",
		"/usr/share drwxr-xr-x 0:0 ",
		"/usr/share/doc drwxr-xr-x 0:0 ",
		"/usr/share/doc/tool-doc L--------- 0:0 tool",
		"/usr/share/doc/tool/copyright -rw-r--r-- 0:0 free",
		"/var/lib/dpkg/status.d/tool -rw-r--r-- 0:0 Package: tool|Version: 1:2.0-3|Architecture: amd64|Maintainer: Somebody <somebody@example.com>|Description: a package| of a test|",
		"/var/lib/dpkg/status.d/tool.md5sums -rw-r--r-- 0:0 d41d8cd98f00b204e9800998ecf8427e  bin/tool|",
	}
	lines := describe(got[0].Files)
	slices.Sort(lines)
	slices.Sort(want)
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if _, err := Unpack(t.Context(), []string{"none.deb"}); err == nil || !strings.Contains(err.Error(), "unpack none.deb: dpkg-deb --field: ") {
		t.Errorf("no file: %v", err)
	}
	fifo := makeDeb(t, t.TempDir(), "fifo", "mkfifo pipe")
	if _, err := Unpack(t.Context(), []string{fifo}); err == nil || !strings.Contains(err.Error(), "/pipe is of type") {
		t.Errorf("a FIFO: %v", err)
	}
}

// TestTree has what maintainer scripts make, and directories that two packages have.
func TestTree(t *testing.T) {
	dir := t.TempDir()
	packages := unpackAll(t,
		makeDeb(t, dir, "base", "mkdir -p var/shared; chmod 2775 var/shared"),
		makeDeb(t, dir, "ca", `
			mkdir -p usr/share/ca-certificates/mozilla etc/ssl/certs
			printf 'B\n' >usr/share/ca-certificates/mozilla/B.crt; printf A >usr/share/ca-certificates/mozilla/A.crt
			printf no >usr/share/ca-certificates/README`),
		makeDeb(t, dir, "iptables", `
			mkdir -p sbin usr/sbin var/shared; cd usr/sbin
			for name in iptables-nft iptables-nft-save ip6tables-nft-restore iptables-legacy arptables-nft; do ln -s multi $name; done; cd ../..`),
	)
	var made []string
	for _, line := range describe(Tree(packages)) {
		if !strings.HasPrefix(line, "/usr/") && !strings.HasPrefix(line, "/var/lib/dpkg") || strings.Contains(line, " iptables-") || strings.Contains(line, " ip6tables-") {
			made = append(made, line)
		}
	}
	want := []string{
		"/etc drwxr-xr-x 0:0 ",
		"/etc/ssl drwxr-xr-x 0:0 ",
		"/etc/ssl/certs drwxr-xr-x 0:0 ",
		"/usr drwxr-xr-x 0:0 ",
		"/var drwxr-xr-x 0:0 ",
		"/var/shared dgrwxrwxr-x 0:0 ",
		"/sbin L--------- 0:0 usr/sbin",
		"/usr/sbin/ip6tables-restore L--------- 0:0 ip6tables-nft-restore",
		"/usr/sbin/iptables L--------- 0:0 iptables-nft",
		"/usr/sbin/iptables-save L--------- 0:0 iptables-nft-save",
		"/etc/ssl/certs/ca-certificates.crt -rw-r--r-- 0:0 A|B|",
	}
	slices.Sort(made)
	slices.Sort(want)
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// What two packages have would be of one of the two: no image is made of that.
	one := makeDeb(t, dir, "one", "touch file; mkdir both")
	for want, script := range map[string]string{"file": "touch file", "both": "touch both"} {
		twice := unpackAll(t, one, makeDeb(t, dir, "two", script))
		_, err := oci.Build(oci.Image{Architecture: "amd64", Layers: []oci.Layer{{Files: Tree(twice)}}}, t.TempDir())
		if err == nil || !strings.Contains(err.Error(), "file /"+want+": described twice") {
			t.Errorf("%s of two packages: %v", want, err)
		}
	}
}
