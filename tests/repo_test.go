// Package tests owns what must hold of the repository as a whole: who imports whom, the manner of the
// code, and that documents, image and demo say what is so.
package tests

import (
	"os"
	"path/filepath"
	"testing"
)

// repoRoot is the directory of go.mod. Tests run in their package's directory, one below it.
func repoRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("tests/ is not one below the root of the module: %v", err)
	}
	return root
}

// readRepoFile is the content of a file that is named from the root.
func readRepoFile(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(repoRoot(t), name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
