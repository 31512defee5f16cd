package agent

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"understudy.mesh/pkg/agent/internal/sockets"
	"understudy.mesh/pkg/status"
)

// socketsLeft counts the open sockets that are not Go's own.
func socketsLeft(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// TestAcceptLeavesNothingOpenWhenItFails: a listener that nobody reads swallows connections.
func TestAcceptLeavesNothingOpenWhenItFails(t *testing.T) {
	cfg := newPod(t).cfg
	s := &sidecar{
		cfg: &cfg, log: quiet(), base: t.Context(), ready: &status.Readiness{},
		world: World{DataDir: t.TempDir(), Log: func(string) *slog.Logger { return quiet() }},
	}
	without := cfg
	without.DNSCapture = false
	var err error
	if s.sockets, err = sockets.New(&without, nil, quiet()); err != nil {
		t.Fatal(err)
	}
	defer s.sockets.Close()
	if err := s.newDNS(); err != nil {
		t.Fatal(err)
	}
	open := socketsLeft(t)
	if err := s.accept(); !errors.Is(err, os.ErrNotExist) || s.accepting() {
		t.Errorf("accept without DNS sockets: %v, accepting: %v", err, s.accepting())
	}
	if left := socketsLeft(t); left > open {
		t.Errorf("%d sockets are open, %d were", left, open)
	}
}
