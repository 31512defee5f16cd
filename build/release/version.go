package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// commit is what a release is made from.
type commit struct {
	hash string
	// time is the committer's: what is made gets it as its time, so that the same commit gives the same bytes.
	time time.Time
}

// checkVersion refuses what is not a semantic version in the form of this project's tags.
func checkVersion(version string) error {
	// Canonical drops build metadata: no tag of an image may have its "+".
	if !semver.IsValid(version) || semver.Canonical(version) != version {
		return fmt.Errorf("VERSION=%q: want a semantic version with a v before it and without build metadata, such as v1.2.3 or v1.3.0-rc.1", version)
	}
	return nil
}

// checkTree returns the commit at root, and refuses files that it does not have, or another commit's tag.
func checkTree(ctx context.Context, root, version string) (commit, error) {
	changes, err := git(ctx, root, "status", "--porcelain")
	if err != nil {
		return commit{}, err
	}
	if changes != "" {
		return commit{}, fmt.Errorf("%s has changes that are in no commit, so nobody could make this release again: commit or stash them:\n%s", root, changes)
	}
	hash, err := git(ctx, root, "rev-parse", "HEAD")
	if err != nil {
		return commit{}, err
	}
	tagged, err := git(ctx, root, "for-each-ref", "--format=%(if)%(*objectname)%(then)%(*objectname)%(else)%(objectname)%(end)", "refs/tags/"+version)
	if err != nil {
		return commit{}, err
	}
	if tagged != "" && tagged != hash {
		return commit{}, fmt.Errorf("VERSION=%s: that tag is commit %.12s, and %.12s is checked out: take the next version, or check the tag out", version, tagged, hash)
	}
	text, err := git(ctx, root, "show", "--no-patch", "--format=%cI", "HEAD")
	if err != nil {
		return commit{}, err
	}
	when, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return commit{}, fmt.Errorf("time of commit %s: %w", hash, err)
	}
	return commit{hash: hash, time: when.UTC()}, nil
}

// git returns what git prints, without the newline at its end.
func git(ctx context.Context, root string, arguments ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-C", root}, arguments...)...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w%s", strings.Join(arguments, " "), err, said(err))
	}
	return strings.TrimRight(string(out), "\n"), nil
}

// said is what a command that failed has printed.
func said(err error) string {
	if exit, ok := err.(*exec.ExitError); ok && len(exit.Stderr) > 0 {
		return ": " + strings.TrimSpace(string(exit.Stderr))
	}
	return ""
}
