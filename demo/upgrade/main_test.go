package main

import (
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/load"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		env  map[string]string
		want func(settings) bool
		err  string
	}{
		{name: "defaults", want: func(s settings) bool {
			return s.upgrades == demoUpgrades && s.rate == defaultRate && s.dnsRate == defaultRate/2 && s.newRate == 0 && s.drain == defaultDrain
		}},
		{name: "environment", env: map[string]string{"UPGRADES": "10", "RATE": "5000", "REQUESTS": "1000000"}, want: func(s settings) bool {
			return s.upgrades == 10 && s.rate == 5000 && s.dnsRate == 2500 && s.requests == 1_000_000
		}},
		{name: "flags win", args: []string{"-upgrades", "2"}, env: map[string]string{"UPGRADES": "10"}, want: func(s settings) bool { return s.upgrades == 2 }},
		{name: "soak", args: []string{"-soak"}, want: func(s settings) bool {
			return s.upgrades == soakUpgrades && s.life == soakLife && s.rate == soakRate && s.newRate == soakNewRate
		}},
		{name: "soak without new connections", args: []string{"-soak"}, env: map[string]string{"NEW_RATE": "0"}, want: func(s settings) bool { return s.newRate == 0 }},
		{name: "negative new rate", args: []string{"-new-rate", "-2"}, err: "positive"},
		{name: "no number", env: map[string]string{"UPGRADES": "many"}, err: `UPGRADES="many"`},
		{name: "negative", args: []string{"-rate", "-1"}, err: "positive"},
		{name: "streams would be cut", args: []string{"-drain", "2s"}, err: "would be cut"},
		{name: "argument", args: []string{"now"}, err: "unexpected argument"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := parse(tc.args, func(name string) string { return tc.env[name] })
			switch {
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error %v, want %q", err, tc.err)
			case tc.err == "" && (err != nil || !tc.want(s)):
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
}

const agentLog = "2026-01-02T03:04:05.000000Z\tinfo\tagent\tstarting\tversion=v1\n" +
	"2026-01-02T03:04:05.500000Z\tinfo\tagent\tserving; the generation before has let go\tfrom=a\n" +
	"a line of a backtrace\n" +
	"2026-01-02T03:04:15.000000Z\tinfo\tagent\tstopped\n"

func TestTimeOf(t *testing.T) {
	from := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for pattern, after := range map[string]time.Duration{logStarting: 0, logServing: 500 * time.Millisecond, logStopped: 10 * time.Second} {
		if got, err := timeOf(agentLog, pattern); err != nil || got.Sub(from) != after {
			t.Errorf("%q: %v, %v", pattern, got, err)
		}
	}
	if _, err := timeOf(agentLog, "never"); err == nil {
		t.Error("a line that is not there was found")
	}
}

func TestBetween(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 400e6, time.UTC)
	got := between(agentLog, at, at.Add(time.Second))
	if !strings.Contains(got, "let go") || !strings.Contains(got, "backtrace") || strings.Contains(got, "starting") || strings.Contains(got, "stopped") {
		t.Errorf("between: %q", got)
	}
}

func TestCounts(t *testing.T) {
	r := load.Report{Flows: []load.FlowReport{
		{Kind: load.HTTP1New, Total: load.Counts{OK: 1}}, {Kind: load.DNSUDP, Total: load.Counts{OK: 10}},
		{Kind: load.TCPStream, Total: load.Counts{OK: 100}}, {Kind: load.Probe, Total: load.Counts{OK: 1000}},
	}}
	for want, of := range map[uint64]class{101: isRequest, 10: isDNS, 1000: isProbe} {
		if got := sum(r, of).OK; got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
}
