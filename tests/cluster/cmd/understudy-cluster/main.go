// The command understudy-cluster owns the cluster of a checkout as `make cluster` has it: it starts and ends it, runs kubectl
// and tests in it, and is itself the first processes of its node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/cluster/internal/node"
)

const usage = `understudy-cluster [flags] up             start the cluster, or find it running
understudy-cluster [flags] down           end it; nothing of it is left but its logs
understudy-cluster [flags] kubectl ...    kubectl in it
understudy-cluster [flags] run COMMAND... start it, run a command with ` + variable + ` set, and end it if it was started

`

const (
	// variable tells a test the directory of the cluster that it is to use, programsVariable that of the programs that were built.
	variable, programsVariable = "UNDERSTUDY_CLUSTER", "UNDERSTUDY_PROGRAMS"
	// exitInterrupted is what shells return after SIGINT.
	exitInterrupted = 130
)

func main() {
	if err := command(os.Args[1:]); err != nil {
		var failed commandError
		switch {
		case errors.As(err, &failed):
			os.Exit(failed.ExitCode()) // it has said why
		case errors.Is(err, context.Canceled):
			fmt.Fprintln(os.Stderr, "cluster: interrupted")
			os.Exit(exitInterrupted)
		case !errors.Is(err, flag.ErrHelp):
			fmt.Fprintln(os.Stderr, "cluster:", err)
		}
		os.Exit(1)
	}
}

// commandError is the end of the command that run was given.
type commandError struct{ *exec.ExitError }

func command(args []string) error {
	if len(args) == 3 && (args[0] == cluster.InitCommand || args[0] == cluster.NodeCommand) {
		return nodeProcess(args[0], node.Config{State: args[1], CgroupRoot: args[2]})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	began := time.Now()
	config := cluster.Config{Say: func(step string) { fmt.Printf("%5.1fs  %s\n", time.Since(began).Seconds(), step) }}
	flags := flag.NewFlagSet("understudy-cluster", flag.ContinueOnError)
	flags.StringVar(&config.Root, "root", ".", "the `directory` of the repository")
	flags.StringVar(&config.Dir, "dir", ".cluster", "the `directory` of the cluster")
	flags.StringVar(&config.Cache, "cache", "", "the `directory` of built programs (default: cache in the cluster's)")
	flags.BoolVar(&config.Istio, "istio", false, "with an istiod")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if config.Cache == "" {
		config.Cache = filepath.Join(config.Dir, "cache")
	}
	if flags.NArg() == 0 {
		flags.Usage()
		return flag.ErrHelp
	}
	rest := flags.Args()[1:]
	switch flags.Arg(0) {
	case "up":
		return up(ctx, config)
	case "down":
		return down(config)
	case "kubectl":
		return kubectl(config.Dir, rest)
	case "run":
		return run(ctx, config, rest)
	}
	flags.Usage()
	return fmt.Errorf("no command %q", flags.Arg(0))
}

// progressFile is the descriptor on which the node says how far it is.
const progressFile = 3

// nodeProcess is one of the first two processes of a node, whose state is the one of another process.
func nodeProcess(name string, c node.Config) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	progress := os.NewFile(progressFile, "progress")
	if progress == nil {
		return fmt.Errorf("%s is started by make cluster alone", name)
	}
	if name == cluster.InitCommand {
		return node.Init(c, []string{os.Args[0], cluster.NodeCommand, c.State, c.CgroupRoot}, progress)
	}
	return node.Run(context.Background(), c, progress)
}

func up(ctx context.Context, config cluster.Config) error {
	if _, err := start(ctx, config); err != nil {
		return err
	}
	fmt.Print(`The cluster runs:
  build/kubectl get pods -A
  build/kubectl apply -f FILE
Images: understudy/proxy:v1, :v2 (with the older Envoy), :dev, understudy/empty:v1; curlimages/curl, nginx:1.14.2; with an istiod ` + cluster.IstioProxy + `. No other can be pulled.
Logs: ` + filepath.Join(config.Dir, "node", "log") + `. Its end: make cluster-down
`)
	return nil
}

// start starts the cluster; started is whether it did not run before.
func start(ctx context.Context, config cluster.Config) (started bool, err error) {
	_, none := cluster.Open(config.Dir)
	_, err = cluster.Up(ctx, config)
	return none != nil, err
}

func down(config cluster.Config) error {
	// Not to be interrupted: what is half gone is harder to find.
	ctx, cancel := context.WithTimeout(context.Background(), cluster.DownLimit)
	defer cancel()
	return cluster.Down(ctx, config)
}

func kubectl(dir string, args []string) error {
	c, err := cluster.Open(dir)
	if err != nil {
		return err
	}
	argv, environ, err := c.KubectlArguments(args...)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("run kubectl: %w", err)
	}
	return syscall.Exec(path, argv, environ)
}

func run(ctx context.Context, config cluster.Config, argv []string) (err error) {
	if len(argv) == 0 {
		return errors.New("run: give a command")
	}
	started, err := start(ctx, config)
	if err != nil {
		return err
	}
	if started {
		defer func() { err = errors.Join(err, down(config)) }()
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return err
	}
	programs, err := filepath.Abs(config.Cache)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// A go test ends its test with SIGINT; with SIGKILL the test would go on.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = cluster.DownLimit
	cmd.Env = append(os.Environ(), variable+"="+dir, programsVariable+"="+programs)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	var exit *exec.ExitError
	switch err := cmd.Run(); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &exit):
		return commandError{exit}
	case err != nil:
		return fmt.Errorf("run %s: %w", strings.Join(argv, " "), err)
	}
	return nil
}
