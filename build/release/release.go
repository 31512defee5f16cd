package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"understudy.mesh/build/release/sign"
)

// architectures are those that a release is for.
var architectures = []string{"amd64", "arm64"}

// imageNames are the images of a release: directories of bin/images, and of the release's images/.
var imageNames = []string{"proxy", "empty", "injector"}

// repository is what an image is called in what is said of it; where it is pushed to, its users decide.
func repository(image string) string { return "understudy/" + image }

// release is one release in the making. Each step writes into directory stage, which takes its name when all is done.
type release struct {
	root, version string
	commit        commit
	key           *sign.Key // nil: not signed
	progress      io.Writer
	stage         string
	licenses      found // of what the binaries are linked from
}

func (r *release) say(format string, arguments ...any) {
	fmt.Fprintf(r.progress, "release: "+format+"\n", arguments...)
}

// make makes bin/release/VERSION, or leaves the one that is there as it is.
func (r *release) make(ctx context.Context) (err error) {
	parent := filepath.Join(r.root, "bin", "release")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("make the directory of releases: %w", err)
	}
	if r.stage, err = os.MkdirTemp(parent, ".making-"); err != nil {
		return fmt.Errorf("make the directory of the release: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.stage)) }()
	if err := os.Chmod(r.stage, 0o755); err != nil {
		return fmt.Errorf("make the directory of the release: %w", err)
	}
	r.say("%s of commit %.12s", r.version, r.commit.hash)
	for _, step := range []func(context.Context) error{r.makeBinaries, r.makePapers, r.makeImages, r.makeSums} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	final := filepath.Join(parent, r.version)
	if err := os.RemoveAll(final); err != nil {
		return fmt.Errorf("replace %s: %w", final, err)
	}
	if err := os.Rename(r.stage, final); err != nil {
		return fmt.Errorf("replace %s: %w", final, err)
	}
	r.say("it is in %s", final)
	return nil
}

// makeBinaries builds linux-ARCH/ for each architecture, as `make build` does.
func (r *release) makeBinaries(ctx context.Context) error {
	for _, arch := range architectures {
		r.say("binaries for %s", arch)
		if err := r.target(ctx, "build", "BIN="+filepath.Join(r.stage, "linux-"+arch), "GOOS=linux", "GOARCH="+arch); err != nil {
			return err
		}
	}
	return nil
}

// target makes a target of the repository's Makefile, which says how what is released is built.
func (r *release) target(ctx context.Context, name string, variables ...string) error {
	cmd := exec.CommandContext(ctx, "make", slices.Concat([]string{"--no-print-directory", "-C", r.root, name, "VERSION=" + r.version}, variables)...)
	// A make that runs this one passes its own variables and job slots on.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "MAKE") || strings.HasPrefix(variable, "MFLAGS=")
	})
	cmd.Stdout, cmd.Stderr = r.progress, r.progress
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// makeSums writes SHA256SUMS over all files but the images' layouts, whose digests are in images.txt, and signs it.
func (r *release) makeSums(context.Context) error {
	sums, err := sumsOf(r.stage)
	if err != nil {
		return err
	}
	if err := r.write("SHA256SUMS", sums); err != nil {
		return err
	}
	if r.key == nil {
		r.say("not signed: COSIGN_KEY names no key")
		return nil
	}
	bundle, err := r.key.Bundle(sums)
	if err != nil {
		return fmt.Errorf("sign SHA256SUMS: %w", err)
	}
	detached, err := r.key.Detached(sums)
	if err != nil {
		return fmt.Errorf("sign SHA256SUMS: %w", err)
	}
	return errors.Join(r.write("SHA256SUMS.sigstore.json", bundle), r.write("SHA256SUMS.sig", detached), r.write("cosign.pub", r.key.Public()))
}

// write writes a file of the release.
func (r *release) write(name string, content []byte) error {
	path := filepath.Join(r.stage, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// sumsOf is what `sha256sum` prints for the files below dir, in order of their names, without those of images/.
func sumsOf(dir string) ([]byte, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if name == "images" {
			return fs.SkipDir
		}
		if !entry.Type().IsRegular() {
			return nil
		}
		sum, err := sumOf(path)
		lines = append(lines, sum+"  "+filepath.ToSlash(name)+"\n")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("sum the files of the release: %w", err)
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2*sha256.Size:], b[2*sha256.Size:]) })
	return []byte(strings.Join(lines, "")), nil
}

func sumOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}
