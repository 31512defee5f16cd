package pods

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// podLimit is how long a pod may take to be ready whose images are on the node. On a free machine it is a few seconds.
const podLimit = 2 * time.Minute

// readmeBlocks are the code blocks of a language in a section of the README, in order.
func readmeBlocks(t *testing.T, section, language string) []string {
	t.Helper()
	return blocksOf(t, "README.md", section, language)
}

// blocksOf are the code blocks of a language in a section of a document, in order.
func blocksOf(t *testing.T, document, section, language string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), document))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## "+section+"\n")
	if !found {
		t.Fatalf("%s has no section %q", document, section)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	var blocks []string
	for _, block := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(rest, -1) {
		blocks = append(blocks, block[1])
	}
	return blocks
}

// shell runs commands of a document as who follows it: in a directory, with kubectl for the cluster and the programs of that directory
// in its PATH. It returns what they print.
func shell(dir, commands string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*stepLimit)
	defer cancel()
	cmd, err := shared.Command(ctx, "bash", "-euo", "pipefail", "-c", "cd "+dir+"\nPATH=$PWD:$PATH\n"+commands)
	if err != nil {
		return "", err
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s%w\n%s%s", commands, err, out, &stderr)
	}
	return string(out), nil
}

// TestFirstPod is README's first pod to the letter: its manifest, and the commands below it.
func TestFirstPod(t *testing.T) {
	ns := shared.Namespace(t, "first-pod")
	manifests := readmeBlocks(t, "A first pod", "yaml")
	if len(manifests) != 1 {
		t.Fatalf("README has %d manifests of a first pod", len(manifests))
	}
	ns.Apply(t, manifests[0])
	ns.Wait(t, podLimit, "condition=Ready", "pod/sleep")
	for name, c := range ns.Pod(t, "sleep").Containers {
		if c.Restarts > 0 {
			t.Errorf("container %s was started %d times: %v, before it %v", name, 1+c.Restarts, c.State, c.Last)
		}
	}

	answers := map[string]*regexp.Regexp{
		"curl -sv https://aliyun.com": regexp.MustCompile(`^server=world\n$`),
		"dns table":                   regexp.MustCompile(`(?m)^aliyun\.com\b.*\b240\.240\.\d+\.\d+`),
		"dns lookup aliyun.com":       regexp.MustCompile(`(?m)\b240\.240\.\d+\.\d+`),
	}
	commands := readmeBlocks(t, "A first pod", "sh")
	for _, command := range strings.Split(strings.TrimSpace(commands[len(commands)-1]), "\n") {
		words := strings.Fields(command)
		if words[0] != "kubectl" {
			t.Fatalf("README asks the pod by %q", command)
		}
		out := ns.Kubectl(t, words[1:]...)
		for end, answer := range answers {
			if strings.HasSuffix(command, end) {
				delete(answers, end)
				if !answer.MatchString(out) {
					t.Errorf("%s: want %v in\n%s", command, answer, out)
				}
			}
		}
	}
	for end := range answers {
		t.Errorf("README has no command that ends with %q", end)
	}
	mustShow(t, ns, "sleep", proxy, "aliyun.com", "VIP 240.240.")
}
