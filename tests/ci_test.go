package tests

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	clusterTests = regexp.MustCompile(`(?s)\nreadonly (?:more_)?cluster_tests=\((.*?)\)`)
	testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(\w+ \*testing\.T\)`)
)

// TestClusterTestsRun wants every test in the cluster but the long ones in a list of .ci/run, once: of those that it runs, or of
// those that it says it leaves out.
func TestClusterTestsRun(t *testing.T) {
	var run []string
	for _, list := range clusterTests.FindAllStringSubmatch(readRepoFile(t, ".ci/run"), -1) {
		run = append(run, strings.Fields(list[1])...)
	}
	slices.Sort(run)
	var files []string
	for _, room := range []string{"pods", "webhook"} {
		found, err := filepath.Glob(filepath.Join(repoRoot(t), "tests/cluster", room, "*_test.go"))
		if err != nil || len(found) == 0 {
			t.Fatalf("tests/cluster/%s: %q, %v", room, found, err)
		}
		files = append(files, found...)
	}
	var written []string
	for _, file := range files {
		for _, function := range testFunction.FindAllStringSubmatch(readRepoFile(t, strings.TrimPrefix(file, repoRoot(t))), -1) {
			if !strings.HasPrefix(function[1], "TestLong") { // make soak runs these
				written = append(written, function[1])
			}
		}
	}
	slices.Sort(written)
	if !slices.Equal(run, written) {
		t.Errorf("tests in the cluster:\n%q\n.ci/run names\n%q", written, run)
	}
}
