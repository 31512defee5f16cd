// Command upgrade owns the story of the hot upgrade on one machine: a pod with two slots, as OpenKruise
// makes them, whose proxy is replaced again and again, by another version of Envoy each time,
// while clients outside and inside of it count every request that fails.
//
// It needs root, bin/pilot-agent, bin/pilot-agent-standby, bin/envoy and bin/envoy-1.39.3;
// `make demo-upgrade` brings them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"understudy.mesh/tests/lab"
)

const (
	exitFailed = 1
	exitUsage  = 2
	// exitInterrupted is what a shell says of a Ctrl-C.
	exitInterrupted = 128 + int(syscall.SIGINT)
)

// settings are the command line, whose defaults the environment may give.
type settings struct {
	upgrades int
	rate     int    // requests a second
	dnsRate  int    // queries a second; half of rate unless set
	newRate  int    // connections of one request a second, each way, besides
	requests uint64 // at least so many before it ends
	soak     bool
	verbose  bool
	logs     string // directory to keep all logs in; "": none, unless a soak fails

	drain time.Duration // --upgradeDrainDuration
	life  time.Duration // of the clients' streams: less than the drain, so that none is cut
	pause time.Duration // of plain load before, between and after upgrades
}

const (
	// What two cores carry with the clients, the servers and two Envoys on them, and room for a start.
	defaultRate = 2000
	// A drain ends with the last connection; at this limit, on a machine that is busy beyond reason.
	defaultDrain = 20 * time.Second
	// How long streams live, and so how long a drain is: to be seen in the demo, and as short as
	// it shows anything in a soak.
	demoLife, demoPause = 5 * time.Second, 4 * time.Second
	soakLife, soakPause = 1500 * time.Millisecond, time.Second

	demoUpgrades, soakUpgrades = 3, 1000

	unset = -1 // a rate that may be 0, and was not given
	// soakNewRate leaves a connection in each phase of its life at any moment, so that a soak sees
	// what goes wrong in one of them only; soakRate leaves room for it.
	soakNewRate = 3000
	soakRate    = 500
)

func parse(args []string, env func(string) string) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("upgrade", flag.ContinueOnError)
	flags.BoolVar(&s.soak, "soak", false, "upgrade without pauses, print a line a minute, end with the first failure")
	flags.BoolVar(&s.verbose, "v", false, "agents log what they do in a hand-off")
	flags.StringVar(&s.logs, "logs", "", "write all logs into this `directory` at the end (a soak that fails writes them anyway)")
	flags.IntVar(&s.upgrades, "upgrades", 0, fmt.Sprintf("how many upgrades [$UPGRADES] (default %d, soak %d)", demoUpgrades, soakUpgrades))
	flags.IntVar(&s.rate, "rate", 0, fmt.Sprintf("requests a second [$RATE] (default %d, soak %d)", defaultRate, soakRate))
	flags.IntVar(&s.dnsRate, "dns-rate", 0, "DNS queries a second [$DNS_RATE] (default: half of the rate)")
	flags.IntVar(&s.newRate, "new-rate", unset, fmt.Sprintf("besides, connections of one request a second, each way [$NEW_RATE] (default 0, soak %d)", soakNewRate))
	flags.Uint64Var(&s.requests, "requests", 0, "make at least so many requests, and spread the upgrades over them [$REQUESTS]")
	flags.DurationVar(&s.drain, "drain", 0, fmt.Sprintf("longest time that an old generation drains (default %v)", defaultDrain))
	for flagName, envName := range map[string]string{"upgrades": "UPGRADES", "rate": "RATE", "dns-rate": "DNS_RATE", "new-rate": "NEW_RATE", "requests": "REQUESTS"} {
		if value := env(envName); value != "" {
			if err := flags.Set(flagName, value); err != nil {
				return s, fmt.Errorf("%s=%s: %w", envName, strconv.Quote(value), err)
			}
		}
	}
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	if flags.NArg() > 0 {
		return s, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return s.complete()
}

func (s settings) complete() (settings, error) {
	upgrades, rate, newRate := demoUpgrades, defaultRate, 0
	s.life, s.pause = demoLife, demoPause
	if s.soak {
		upgrades, rate, newRate = soakUpgrades, soakRate, soakNewRate
		s.life, s.pause = soakLife, soakPause
	}
	setDefault(&s.drain, defaultDrain)
	setDefault(&s.upgrades, upgrades)
	setDefault(&s.rate, rate)
	setDefault(&s.dnsRate, (s.rate+1)/2)
	if s.newRate == unset {
		s.newRate = newRate
	}
	if s.newRate < 0 || s.upgrades < 1 || s.rate < 1 || s.dnsRate < 1 {
		return s, errors.New("upgrades and rates are positive numbers")
	}
	if s.drain <= s.life {
		return s, fmt.Errorf("drain %v: streams live for %v, and would be cut: give more", s.drain, s.life)
	}
	return s, nil
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

func main() {
	s, err := parse(os.Args[1:], os.Getenv)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo-upgrade: %v\n", err)
		os.Exit(exitUsage)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err = lab.Program(ctx, os.Stderr, func(t lab.T) error { return tell(ctx, t, s) })
	switch {
	case errors.Is(err, lab.ErrInterrupted):
		fmt.Fprintln(os.Stderr, "demo-upgrade: interrupted; everything is removed")
		os.Exit(exitInterrupted)
	case err != nil:
		fmt.Fprintf(os.Stderr, "demo-upgrade: %v\n", err)
		os.Exit(exitFailed)
	}
}
