package skew_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/tests/lab"
)

const (
	// predecessorFile holds the commit that the release before was made from.
	predecessorFile = "predecessor"
	// cacheDir, below the root, holds what was built of commits; it is not in git.
	cacheDir = ".skew"
)

var fullHash = regexp.MustCompile(`^[0-9a-f]{40}$`)

// predecessor returns the path of the agent of the release before. It is built once for each commit.
func predecessor(t *testing.T) string {
	t.Helper()
	root := lab.RepoRoot(t)
	commit, err := readCommit(filepath.Join(root, "tests", "skew", predecessorFile))
	var binary string
	if err == nil {
		binary, err = buildAgent(root, commit)
	}
	if errors.Is(err, errNoRepository) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// readCommit reads a file that holds one full commit hash.
func readCommit(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("find the release before: %w", err)
	}
	commit := strings.TrimSpace(string(text))
	if !fullHash.MatchString(commit) {
		return "", fmt.Errorf("%s: %.60q: want one full commit hash, as `git rev-parse COMMIT` prints", path, commit)
	}
	return commit, nil
}

// errNoRepository says that there are no commits to build anything from.
var errNoRepository = errors.New("not a git repository: the release before is built from its history")

// buildAgent returns the agent of a commit of the repository at root: from the cache, or built as that
// commit's own Makefile builds it. Several processes may do so at once.
func buildAgent(root, commit string) (string, error) {
	binary := filepath.Join(root, cacheDir, commit, "pilot-agent")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	if err := hasCommit(root, commit); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(binary), 0o755); err != nil {
		return "", fmt.Errorf("make the cache of releases: %w", err)
	}
	source, err := os.MkdirTemp(filepath.Join(root, cacheDir), "source-")
	if err != nil {
		return "", fmt.Errorf("make the cache of releases: %w", err)
	}
	defer os.RemoveAll(source)
	archive := filepath.Join(source, "source.tar")
	for _, argv := range [][]string{
		{"git", "-C", root, "archive", "--output", archive, commit},
		{"tar", "-xf", archive, "-C", source},
		{"make", "-C", source, "build", "VERSION=" + commit[:12]},
	} {
		if out, err := command(argv...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("build the agent of commit %s: %q: %w: %s", commit, argv, err, out)
		}
	}
	if err := os.Rename(filepath.Join(source, "bin", "pilot-agent"), binary); err != nil {
		return "", fmt.Errorf("keep the agent of commit %s: %w", commit, err)
	}
	return binary, nil
}

// hasCommit says what is wrong when the repository at root lacks a commit.
func hasCommit(root, commit string) error {
	// .git is a file in a worktree. Without it git would look in the directories above.
	if _, err := os.Stat(filepath.Join(root, ".git")); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", root, errNoRepository)
	}
	out, err := command("git", "-C", root, "cat-file", "-e", commit+"^{commit}").CombinedOutput()
	if err == nil {
		return nil
	}
	remedy := "take the hash of a commit that was pushed"
	if shallow, err := command("git", "-C", root, "rev-parse", "--is-shallow-repository").Output(); err == nil && strings.TrimSpace(string(shallow)) == "true" {
		remedy = "this clone is shallow: run `git fetch --unshallow`, or clone it without --depth"
	}
	return fmt.Errorf("commit %s, which tests/skew/%s names, is not in %s: %s (git: %s)", commit, predecessorFile, root, remedy, strings.TrimSpace(string(out)))
}

// inherited is what `make test`, or a git hook, tells the programs that it starts.
var inherited = []string{"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"}

// command is a host command that goes by its arguments alone.
func command(argv ...string) *exec.Cmd {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		name, _, _ := strings.Cut(variable, "=")
		return slices.Contains(inherited, name)
	})
	return cmd
}

// TestPredecessorIsNamed demands that the file names a commit of this repository. The history of a release has it.
func TestPredecessorIsNamed(t *testing.T) {
	t.Parallel()
	root := lab.RepoRoot(t)
	commit, err := readCommit(predecessorFile)
	if err == nil {
		err = hasCommit(root, commit)
	}
	if errors.Is(err, errNoRepository) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPredecessorMissing looks for a release where there is none: what is wrong, and what helps, is said.
func TestPredecessorMissing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	full, shallow, other := filepath.Join(dir, "full"), filepath.Join(dir, "shallow"), filepath.Join(dir, "other")
	git := func(argv ...string) string {
		t.Helper()
		argv = append([]string{"git", "-c", "user.name=test", "-c", "user.email=test@example.com"}, argv...)
		out, err := command(argv...).Output()
		if err != nil {
			t.Fatalf("%q: %v", argv, err)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", full)
	git("-C", full, "commit", "-q", "--allow-empty", "-m", "first")
	first := git("-C", full, "rev-parse", "HEAD")
	git("-C", full, "commit", "-q", "--allow-empty", "-m", "second")
	git("clone", "-q", "--depth", "1", "file://"+full, shallow)
	git("init", "-q", other)
	if err := hasCommit(full, first); err != nil {
		t.Errorf("the commit is there: %v", err)
	}
	for _, tc := range []struct {
		name, root string
		words      []string
	}{
		{"a shallow clone", shallow, []string{first, shallow, "git fetch --unshallow"}},
		{"another repository", other, []string{first, other, "a commit that was pushed"}},
		{"no repository", dir, []string{dir, "not a git repository"}},
	} {
		_, err := buildAgent(tc.root, first)
		for _, words := range tc.words {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%s: %v: no %q", tc.name, err, words)
			}
		}
	}
	if _, err := buildAgent(full, first); err == nil || !strings.Contains(err.Error(), "make") {
		t.Errorf("a commit that cannot be built: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(full, cacheDir, "source-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// TestPredecessorFile reads files that hold something else than one full hash.
func TestPredecessorFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), predecessorFile)
	hash := strings.Repeat("0123456789", 4)
	for content, good := range map[string]bool{
		hash: true, hash + "\n": true, "": false, hash[:12]: false, "HEAD~1\n": false, hash + "\n" + hash + "\n": false, strings.Repeat("G", 40): false,
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		commit, err := readCommit(path)
		if good && (err != nil || commit != hash) || !good && (err == nil || !strings.Contains(err.Error(), path)) {
			t.Errorf("%q: %q, %v", content, commit, err)
		}
	}
	if _, err := readCommit(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no file: no error")
	}
}
