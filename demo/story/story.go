// Package story owns what the stories in a real cluster share: how one is run, what it shows of each command, and its checks.
package story

import (
	"bufio"
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
	// shownLines is how much of an answer is shown.
	shownLines = 12
)

// Story is one run of a story, in a namespace of its own. What it makes goes with T.
type Story struct {
	*screen.Screen
	lab.T
	Cluster   *cluster.Cluster
	Namespace *cluster.Namespace

	checks, failed int
}

// Main is the program that tells a story: it runs the chapters in the cluster that the environment UNDERSTUDY_CLUSTER names, and
// exits with 0 if every check held. name is the make target.
func Main(name string, chapters func(*Story) []func()) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, name, chapters)
	switch {
	case errors.Is(err, lab.ErrInterrupted):
		fmt.Fprintf(os.Stderr, "%s: interrupted; everything is removed\n", name)
		os.Exit(exitInterrupted)
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(exitFailed)
	}
}

func run(ctx context.Context, name string, chapters func(*Story) []func()) error {
	dir := os.Getenv("UNDERSTUDY_CLUSTER")
	if dir == "" {
		return errors.New("UNDERSTUDY_CLUSTER names no cluster: use make " + name)
	}
	c, err := cluster.Open(dir)
	if err != nil {
		return err
	}
	return lab.Program(ctx, os.Stderr, func(t lab.T) error {
		s := &Story{Screen: screen.New(os.Stdout, os.Getenv("NO_COLOR") != ""), T: t, Cluster: c, Namespace: c.Namespace(t, "demo")}
		for _, chapter := range chapters(s) {
			chapter()
		}
		s.Title("%s: %d checks, %d failed", name, s.checks, s.failed)
		if s.failed > 0 {
			return errors.New("FAILED")
		}
		return nil
	})
}

// Check says whether something is as it is told.
func (s *Story) Check(ok bool, what string) {
	s.checks++
	if ok {
		s.Say("ok      " + what)
		return
	}
	s.failed++
	s.Strong("FAILED  " + what)
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

// Command shows a command as it would be typed.
func (s *Story) Command(name string, arguments []string) {
	words := []string{"$", name}
	for _, a := range arguments {
		if strings.ContainsAny(a, ` {}%"|`) {
			a = "'" + a + "'"
		}
		words = append(words, a)
	}
	s.Say(strings.Join(words, " "))
}

// Answer shows the first lines of what a command has said.
func (s *Story) Answer(text string) {
	scanner := bufio.NewScanner(strings.NewReader(text))
	for n := 0; n < shownLines && scanner.Scan(); n++ {
		s.Faint("  " + scanner.Text())
	}
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
