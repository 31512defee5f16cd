// Command bench measures the agent against what it stands beside: its DNS against unbound and a
// raw UDP echo, its start and memory against Envoy alone with the same resources, shared
// listeners against one for each VIP and against Istio's agent, its restart with the same files against both, its capture rules against one bare iptables-restore, its hot upgrade against a cold start and against the load
// before it, or against the limit that it must keep, what a push of a real istiod costs it against
// Istio's own agent, the injector's webhook against istiod's, and modules of Wasm filters against their limits. Both sides of every ratio are measured in turn in the same run, and medians are
// shown. Whatever captures or is loaded lives in namespaces of its own.
//
// It needs root, bin/pilot-agent, bin/envoy, dnsperf and unbound; `make bench` brings them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
)

// settings are the command line.
type settings struct {
	rounds   int           // how often each measurement is repeated
	duration time.Duration // of one DNS load
	entries  int           // ServiceEntries of the agent
	only     string        // the sections to run, separated by commas; "" for all
	out      string        // directory of the JSON files
	cache    string        // directory of Istio's programs
	echo     string        // run as the echo server on this address instead
	load     bool          // make the load whose configuration is on standard input instead
}

func parse() settings {
	var s settings
	flag.IntVar(&s.rounds, "rounds", 5, "how often each measurement is repeated; medians are shown")
	flag.DurationVar(&s.duration, "duration", 3*time.Second, "how long one DNS load takes")
	flag.IntVar(&s.entries, "entries", 1000, "number of ServiceEntries")
	flag.StringVar(&s.only, "only", "", "sections to run: dns,start,iptables,vips,listeners,restart,upgrade,istiod,inject,wasm (default: all)")
	flag.StringVar(&s.out, "out", "bench/out", "directory of the JSON files")
	flag.StringVar(&s.cache, "cache", ".cluster/cache", "directory of Istio's programs, which are built when they are not there")
	flag.StringVar(&s.echo, "echo", "", "serve raw UDP echoes on this address, and do nothing else")
	flag.BoolVar(&s.load, "load", false, "make the load whose configuration is on standard input, and do nothing else")
	flag.Parse()
	return s
}

// wants tells whether a section is to run: "upgrade" stands for all that begin so.
func (s settings) wants(section string) bool {
	family, _, _ := strings.Cut(section, "-")
	only := strings.Split(s.only, ",")
	return s.only == "" || slices.Contains(only, section) || slices.Contains(only, family)
}

func main() {
	s := parse()
	if s.echo != "" {
		slog.Error("the echo server ended", "err", echo(s.echo))
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if s.load {
		if err := generate(ctx, os.Stdin, os.Stdout); err != nil {
			slog.Error("the load ended", "err", err)
			os.Exit(1)
		}
		return
	}
	var all []result
	failed := false
	for _, section := range []struct {
		name    string
		measure func(lab.T, settings) []result
	}{
		{"dns", benchDNS}, {"start", benchStart}, {"iptables", benchIptables}, {"iptables-many", benchIptablesMany},
		{"vips", benchVIPs}, {"listeners", benchListeners}, {"restart", benchRestart}, {"upgrade-start", benchUpgradeStart}, {"upgrade-load", benchUpgradeLoad},
		{"upgrade-crash", benchUpgradeCrash}, {"upgrade-memory", benchUpgradeMemory}, {"istiod", benchIstiod}, {"inject", benchInject},
		{"wasm-start", benchWasmStart}, {"wasm-load", benchWasmLoad}, {"wasm-updates", benchWasmUpdates},
		{"wasm-bad", benchWasmBad},
	} {
		if !s.wants(section.name) {
			continue
		}
		var results []result
		err := lab.Program(ctx, os.Stderr, func(t lab.T) error {
			results = section.measure(t, s)
			return nil
		})
		if err == nil {
			err = errors.Join(writeJSON(s.out, section.name, results), broken(results))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", section.name, err)
			failed = true
		}
		if ctx.Err() != nil {
			break // and what was interrupted may not have ended
		}
		all = append(all, results...)
	}
	if len(all) > 0 {
		fmt.Print(table(all))
	}
	if failed {
		os.Exit(1)
	}
}
