package upstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/dnstest"
)

// A change of a server's state is one line in the log that names the server; what
// changes nothing is none.
func TestUpstreamLog(t *testing.T) {
	const (
		fast      = time.Millisecond
		tardy     = slowRTT
		lost      = -1
		overtaken = -2
	)
	repeat := func(n int, d time.Duration) (list []time.Duration) {
		for range n {
			list = append(list, d)
		}
		return list
	}
	type phase struct {
		tries []time.Duration
		line  string // "": none
	}
	for name, phases := range map[string][]phase{
		"fails and is back": {
			{repeat(10, fast), ""}, {repeat(failingAfter-1, lost), ""}, {repeat(1, lost), "dns upstream is failing"},
			{repeat(10, lost), ""}, {repeat(1, fast), "dns upstream is healthy again"}, {repeat(10, fast), ""}, {repeat(1, lost), ""},
		},
		"is slow and then not": {
			{repeat(slowAfter-1, tardy), ""}, {repeat(1, tardy), "dns upstream is slow"}, {repeat(10, tardy), ""},
			{repeat(1, fast), "dns upstream is healthy again"}, {repeat(slowAfter-1, tardy), ""},
		},
		"is slow, then fails, then is slow": {
			{repeat(slowAfter, tardy), "dns upstream is slow"}, {repeat(failingAfter, lost), "dns upstream is failing"},
			{repeat(1, tardy), "dns upstream is healthy again"}, {repeat(slowAfter-1, tardy), "dns upstream is slow"},
		},
		"is overtaken": {
			{repeat(overtakenAfter-1, overtaken), ""}, {repeat(1, overtaken), "dns upstream is slow"},
			{repeat(10, overtaken), ""}, {repeat(1, fast), "dns upstream is healthy again"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			log, now := new(dnstest.Log), dnstest.NewClock()
			u := &server{addr: netip.MustParseAddrPort("192.0.2.53:53"), log: slog.New(slog.NewTextHandler(log, nil))}
			var want []string
			for i, p := range phases {
				for _, d := range p.tries {
					began := now.Now()
					now.Add(max(d, 0))
					switch d {
					case lost:
						u.done(began, 0, errors.New("no answer"))
					case overtaken:
						u.overtaken(began, errors.New("another was first"))
					default:
						u.done(began, d, nil)
					}
				}
				if p.line != "" {
					want = append(want, p.line)
				}
				got := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
				if len(want) == 0 && got[0] == "" {
					continue
				}
				if len(got) != len(want) {
					t.Fatalf("phase %d: %d lines, want %d:\n%s", i, len(got), len(want), log)
				}
				if last := got[len(got)-1]; !strings.Contains(last, want[len(want)-1]) || !strings.Contains(last, "server=192.0.2.53:53") {
					t.Errorf("phase %d: %s", i, last)
				}
			}
		})
	}
}

// The last error stays to be seen, with its time, when the server is well again.
func TestUpstreamLastError(t *testing.T) {
	now := dnstest.NewClock()
	u := &server{log: slog.New(slog.DiscardHandler)}
	if s := u.snapshot(); s.Error != "" || !s.ErrorAt.IsZero() {
		t.Errorf("before any: %+v", s)
	}
	at := now.Now()
	u.done(now.Now(), 0, errors.New("connection refused"))
	now.Add(time.Minute)
	u.done(now.Now(), time.Millisecond, nil)
	if s := u.snapshot(); s.State != StateHealthy || s.Error != "connection refused" || !s.ErrorAt.Equal(at) {
		t.Errorf("%+v", s)
	}
}

// However often resolv.conf changes, servers that it has no more do not pile up.
func TestKnownUpstreamsAreBounded(t *testing.T) {
	now := dnstest.NewClock()
	path := dnstest.WriteConf(t, "nameserver 192.0.2.1")
	f := startForwarder(t, Config{ResolvConf: path, Now: now.Now})
	for i := range 5 * maxKnown {
		text := fmt.Sprintf("nameserver 192.0.2.1\nnameserver 198.51.100.%d\n", i+1)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		now.Add(time.Hour)
		f.plan()
		list := f.Stats()
		used := 0
		for _, u := range list {
			if u.InUse {
				used++
			}
		}
		if len(list) > maxKnown || used != 2 {
			t.Fatalf("after change %d: %d servers known, %d in use, want at most %d and 2", i+1, len(list), used, maxKnown)
		}
	}
}
