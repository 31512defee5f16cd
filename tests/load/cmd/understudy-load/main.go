// The command understudy-load owns a load as a process: it makes traffic and reports on it, one JSON
// line a second (load.Report), or serves at the other end.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/tests/load"
)

const usage = `understudy-load [run] [flags]   make requests; a JSON report a second on standard output
understudy-load serve [flags]   be the server; prints "listening KIND ADDRESS" for each address

A run ends with SIGTERM or SIGINT, -duration, or -requests, and prints a final report ("final":true).
Exit status: 0 all requests succeeded, 1 the run could not be made, 2 wrong command line, 3 requests failed.

  understudy-load -duration 10s -flow 'kind=http1-new target=http://192.0.2.2:8080/ rate=1000 want=server='
  understudy-load serve -name app -http 0.0.0.0:8080 -echo 0.0.0.0:9000

`

// Exit statuses.
const (
	exitError  = 1
	exitUsage  = 2
	exitFailed = 3
)

// errFailed is a run that was made, and in which requests failed.
var errFailed = errors.New("requests failed")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	err := command(ctx, os.Args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errFailed):
		os.Exit(exitFailed)
	default:
		slog.Error(err.Error())
		var wrong usageError
		if errors.As(err, &wrong) {
			os.Exit(exitUsage)
		}
		os.Exit(exitError)
	}
}

// usageError is a command line that is wrong.
type usageError struct{ error }

func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "serve":
			return serve(ctx, args[1:], os.Stdout)
		case "run":
			args = args[1:]
		}
	}
	return run(ctx, args, os.Stdin, os.Stdout)
}

func newFlags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	return flags
}

func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return err
	} else if err != nil {
		return usageError{err}
	}
	if flags.NArg() > 0 {
		return usageError{fmt.Errorf("%s: unexpected argument %q", flags.Name(), flags.Arg(0))}
	}
	return nil
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	flags := newFlags("run")
	var flows []load.Flow
	config := flags.String("config", "", "read the run from this `file` of JSON, - for standard input; other flags win over it, flows are added")
	source := flags.String("source", "", "`name` of the run in its reports")
	duration := flags.Duration("duration", 0, "end after this time (0: when told to)")
	requests := flags.Uint64("requests", 0, "end after this many requests (0: when told to)")
	table := flags.Bool("table", false, "print the closing table on standard error")
	flags.Func("flow", "requests of one kind to one target, `key=value ...` (repeatable); keys as in JSON: name kind target connect rate workers conns timeout life size want names type new_socket", func(text string) error {
		f, err := load.ParseFlow(text)
		flows = append(flows, f)
		return err
	})
	if err := parse(flags, args); err != nil {
		return err
	}
	c, err := readConfig(*config, stdin)
	if err != nil {
		return err
	}
	c.Flows = append(c.Flows, flows...)
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "source":
			c.Source = *source
		case "duration":
			c.Duration = load.Duration(*duration)
		case "requests":
			c.Requests = *requests
		}
	})
	return report(ctx, c, stdout, *table)
}

func readConfig(path string, stdin io.Reader) (load.Config, error) {
	switch path {
	case "":
		return load.Config{}, nil
	case "-":
		return load.ReadConfig(stdin)
	}
	f, err := os.Open(path)
	if err != nil {
		return load.Config{}, err
	}
	defer f.Close()
	return load.ReadConfig(f)
}

// report runs the load and writes its lines. A reader that went away ends it.
func report(ctx context.Context, c load.Config, stdout io.Writer, table bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	lines := json.NewEncoder(stdout)
	final, err := load.Run(ctx, c, func(r load.Report) {
		if err := lines.Encode(r); err != nil {
			cancel(fmt.Errorf("write a report: %w", err))
		}
	})
	if err != nil {
		return usageError{err}
	}
	if err := lines.Encode(final); err != nil {
		return fmt.Errorf("write the final report: %w", err)
	}
	if table {
		fmt.Fprint(os.Stderr, final)
	}
	if final.Failures() > 0 {
		return errFailed
	}
	return nil
}

func serve(ctx context.Context, args []string, stdout io.Writer) error {
	flags := newFlags("serve")
	name := flags.String("name", "app", "answer every request with server=`name`")
	group, ctx := errgroup.WithContext(ctx)
	var starts []func() error // bind first: an address that is taken starts nothing
	listen := func(kind string, serve func(net.Listener) error) func(string) error {
		return func(address string) error {
			starts = append(starts, func() error {
				l, err := net.Listen("tcp", address)
				if err != nil {
					return err
				}
				group.Go(func() error { return serve(l) })
				_, err = fmt.Fprintln(stdout, "listening", kind, l.Addr())
				return err
			})
			return nil
		}
	}
	flags.Func("http", "serve HTTP/1.1, and HTTP/2 with prior knowledge, on this `address` (repeatable); "+load.EchoPath+" is for h2-stream",
		listen("http", func(l net.Listener) error { return load.ServeHTTP(ctx, l, *name) }))
	var certificates []tls.Certificate
	flags.Func("cert", "the certificate and key of -https, before it: `FILE,FILE`, PEM", func(files string) error {
		cert, key, _ := strings.Cut(files, ",")
		pair, err := tls.LoadX509KeyPair(cert, key)
		certificates = []tls.Certificate{pair}
		return err
	})
	https := listen("https", func(l net.Listener) error {
		return load.ServeHTTP(ctx, tls.NewListener(l, &tls.Config{Certificates: certificates}), *name)
	})
	flags.Func("https", "serve HTTP/1.1 over TLS on this `address` (repeatable)", func(address string) error {
		if certificates == nil {
			return errors.New("give -cert before it")
		}
		return https(address)
	})
	flags.Func("echo", "echo TCP connections on this `address` (repeatable)",
		listen("echo", func(l net.Listener) error { return load.ServeEcho(ctx, l) }))
	if err := parse(flags, args); err != nil {
		return err
	}
	if len(starts) == 0 {
		return usageError{errors.New("serve: give -http, -https or -echo")}
	}
	for _, start := range starts {
		if err := start(); err != nil {
			return err
		}
	}
	return group.Wait()
}
