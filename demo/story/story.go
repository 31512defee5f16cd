// Package story owns how a demo is run as a program, and what the stories in a real cluster share: what they show of each command.
package story

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"understudy.mesh/demo/screen"
	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

const (
	exitFailed = 1
	// exitInterrupted is what a shell says of a Ctrl-C.
	exitInterrupted = 128 + int(syscall.SIGINT)
)

// Story is one run of a story, in a namespace of its own. What it makes goes with T.
type Story struct {
	*screen.Screen
	lab.T
	Cluster   *cluster.Cluster
	Namespace *cluster.Namespace
}

// Main is the program that tells a story: it runs the chapters in the cluster that the environment UNDERSTUDY_CLUSTER names, and
// exits with 0 if every check held. name is the make target.
func Main(name string, chapters func(*Story) []func()) {
	Program(name, func(t lab.T, screen *screen.Screen) {
		dir := os.Getenv("UNDERSTUDY_CLUSTER")
		if dir == "" {
			t.Fatalf("UNDERSTUDY_CLUSTER names no cluster: use make %s", name)
		}
		c, err := cluster.Open(dir)
		if err != nil {
			t.Fatalf("%v", err)
		}
		s := &Story{Screen: screen, T: t, Cluster: c, Namespace: c.Namespace(t, "demo")}
		for _, chapter := range chapters(s) {
			chapter()
		}
	})
}

// Program is a demo: it exits with 0 if every check held, and what the demo has made is gone by then, also after Ctrl-C. name is
// the make target.
func Program(name string, tell func(lab.T, *screen.Screen)) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := screen.New(os.Stdout, os.Getenv("NO_COLOR") != "")
	err := lab.Program(ctx, os.Stderr, func(t lab.T) error {
		tell(t, s)
		return s.Closing(name)
	})
	switch {
	case errors.Is(err, lab.ErrInterrupted):
		fmt.Fprintf(os.Stderr, "%s: interrupted; everything is removed\n", name)
		os.Exit(exitInterrupted)
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(exitFailed)
	}
}

// Apply applies a manifest whose file is path in the repository.
func (s *Story) Apply(path, manifest string) {
	s.Say("$ kubectl apply -f " + path)
	s.Namespace.Apply(s.T, manifest)
}

// Kubectl runs and shows a command in the story's namespace, which must succeed.
func (s *Story) Kubectl(arguments ...string) string {
	out, err := s.Try(arguments...)
	if err != nil {
		s.Fatalf("%v", err)
	}
	return out
}

// Try is Kubectl of a command that may fail.
func (s *Story) Try(arguments ...string) (string, error) {
	s.Command("kubectl", arguments)
	out, err := s.Namespace.Try(arguments...)
	s.Answer(out)
	if err != nil {
		s.Answer(err.Error())
	}
	return out, err
}

// Quiet is Kubectl of a command whose answer is too long to be shown.
func (s *Story) Quiet(arguments ...string) string {
	s.Command("kubectl", arguments)
	return s.Namespace.Kubectl(s.T, arguments...)
}

// Containing are the lines that have one of the words in them, each once.
func Containing(text string, words ...string) string {
	var kept []string
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		for _, w := range words {
			if strings.Contains(line, w) && !seen[line] {
				seen[line] = true
				kept = append(kept, "  "+line)
			}
		}
	}
	return strings.Join(kept, "\n")
}
