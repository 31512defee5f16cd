package sidecar

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"testing"
	"time"

	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/status"
	"understudy.mesh/tests/descriptors"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestAcceptLeavesNothingOpenWhenItFails: a listener that nobody reads swallows connections.
func TestAcceptLeavesNothingOpenWhenItFails(t *testing.T) {
	cfg := config.Config{IPv4: true, DNSCapture: true, DNSAddrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:15053")}, DNSForwardTimeout: time.Second}
	s := &Sidecar{
		cfg: &cfg, log: quiet(), life: life{base: t.Context()}, Ready: &status.Readiness{},
		world: World{DataDir: t.TempDir(), Log: func(string) *slog.Logger { return quiet() }},
	}
	without := cfg
	without.DNSCapture = false
	var err error
	if s.Sockets, err = sockets.New(&without, nil, quiet()); err != nil {
		t.Fatal(err)
	}
	defer s.Sockets.Close()
	if s.names, err = openNames(&cfg, s.world); err != nil {
		t.Fatal(err)
	}
	open := descriptors.OpenSockets(t)
	if err := s.Accept(); !errors.Is(err, os.ErrNotExist) || s.Accepting() {
		t.Errorf("accept without DNS sockets: %v, accepting: %v", err, s.Accepting())
	}
	if left := descriptors.OpenSockets(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}

// waitFor polls cond within a generous deadline.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}
