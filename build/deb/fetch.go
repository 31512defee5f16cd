// Package deb owns what an image has of Debian: packages with all that they depend on, downloaded by apt into a place
// of their own and unpacked without being installed, so that the packages of the machine play no part.
package deb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Release is the release of Debian that packages are of.
const Release = "bookworm"

// sources are where apt has packages from. The mirrors keep no old versions, so none can be asked for: an image has
// the versions of the day of its first download, security updates included.
const sources = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian ` + Release + ` main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian ` + Release + `-updates main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian-security ` + Release + `-security main
`

// leftOut are dependencies that only maintainer scripts have a use for; apt is told that they are installed.
var leftOut = []string{"awk", "debconf", "openssl"}

// Fetch downloads packages and what they depend on for an architecture of Debian's into a directory below cache, or
// finds them there, and returns their files. What is there is not asked for again, whatever its age.
func Fetch(ctx context.Context, cache, arch string, packages []string) ([]string, error) {
	dir := filepath.Join(cache, arch, strings.Join(packages, "_"))
	recipe := []byte(sources + status(arch) + strings.Join(packages, " ") + "\n")
	if was, err := os.ReadFile(filepath.Join(dir, "recipe")); err != nil || !bytes.Equal(was, recipe) {
		if err := download(ctx, dir, arch, packages, recipe); err != nil {
			return nil, fmt.Errorf("packages %s of Debian for %s: %w", strings.Join(packages, " "), arch, err)
		}
	}
	return filepath.Glob(filepath.Join(dir, "archives", "*.deb"))
}

// status is dpkg's record of installed packages, as apt is to see it.
func status(arch string) string {
	var text strings.Builder
	for _, name := range leftOut {
		fmt.Fprintf(&text, "Package: %s\nStatus: install ok installed\nVersion: 9999\nMulti-Arch: foreign\nArchitecture: %s\n\n", name, arch)
	}
	return text.String()
}

// download makes the whole directory or none.
func download(ctx context.Context, dir, arch string, packages []string, recipe []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	root, err := os.MkdirTemp(filepath.Dir(dir), ".download-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	for _, needed := range []string{filepath.Join(root, "archives", "partial"), filepath.Join(filepath.Dir(root), "lists", "partial")} {
		if err := os.MkdirAll(needed, 0o755); err != nil {
			return err
		}
	}
	for name, content := range map[string][]byte{"sources.list": []byte(sources), "status": []byte(status(arch)), "recipe": recipe} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o644); err != nil {
			return err
		}
	}
	install := append([]string{"install", "--yes", "--download-only", "--no-install-recommends"}, packages...)
	for _, arguments := range [][]string{{"update"}, install} {
		if err := apt(ctx, root, arch, arguments); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(dir), os.Rename(root, dir))
}

// apt runs apt-get on archives and records in root, and lists beside it, which the next download finds. The machine's apt.conf holds, since it may name a proxy.
func apt(ctx context.Context, root, arch string, arguments []string) error {
	var options []string
	for _, option := range []string{
		"APT::Architecture=" + arch, "APT::Architectures=" + arch,
		"APT::Sandbox::User=root",     // another user could not write below root
		"APT::Update::Error-Mode=any", // without the list of security updates, older versions would be taken
		"Acquire::Languages=none", "Acquire::Retries=3",
		"Dir::Cache=" + root, "Dir::Cache::archives=archives",
		"Dir::State=" + root, "Dir::State::lists=" + filepath.Dir(root) + "/lists", "Dir::State::status=" + root + "/status",
		"Dir::Etc::sourcelist=" + root + "/sources.list", "Dir::Etc::sourceparts=/dev/null",
		"Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null",
	} {
		options = append(options, "-o", option)
	}
	output, err := exec.CommandContext(ctx, "apt-get", append(append(options, "-qq"), arguments...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w: %s", arguments[0], err, bytes.TrimSpace(output))
	}
	return nil
}
