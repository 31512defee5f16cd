package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"understudy.mesh/tests/lab"
)

// TestUpgradeUnderIstiod upgrades a pod hot that has its configuration from istiod: while that is there, while it is away, and
// while it dies as the newcomer calls it.
func TestUpgradeUnderIstiod(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t)
	p.inject(t, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	upgrade := func(slot int, image lab.Image) {
		t.Helper()
		p.kruise.Upgrade(image)
		p.kruise.WaitUpgraded(t)
		p.mustServe(t, slot, image)
		p.mustServeClients(t, slot)
		// Not a synchronisation: a pod that is switched sooner leaves its Service.
		<-time.After(lab.QuickRestarts)
	}
	upgrade(1, p.newer)
	i.mustHaveOneStream()

	i.stop()
	upgrade(0, p.older)
	i.start()
	i.mustHaveOneStream()

	died := make(chan struct{})
	i.set(nil, sync.OnceFunc(func() {
		go func() { defer close(died); i.stop() }()
	}))
	upgrade(1, p.newer)
	<-died
	i.set(nil, func() {})
	i.start()
	i.mustHaveOneStream()
	load.check(t)
}

// TestUpgradeWholeStates upgrades a pod hot that speaks of whole states, with istiod and with its Envoys.
func TestUpgradeWholeStates(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t, "ISTIO_DELTA_XDS=false")
	p.inject(t, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	p.kruise.Upgrade(p.newer)
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	i.mustHaveOneStream()

	// Not a synchronisation: a pod that is switched sooner leaves its Service.
	<-time.After(lab.QuickRestarts)
	i.stop()
	p.kruise.Upgrade(p.older)
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 0, p.older)
	i.start()
	i.mustHaveOneStream()
	load.check(t)
}

// mustServeClients demands that xDS clients other than Envoy find the agent of a slot where they look: it answers there.
func (p *slotPod) mustServeClients(t *testing.T, slot int) {
	t.Helper()
	conn, err := grpc.NewClient(fmt.Sprintf("unix:///proc/%d/root/etc/istio/proxy/XDS", p.slot(slot).Agent().PID()), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	lab.Eventually(t, settleWithin, "xDS clients find the agent", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), settleWithin)
		defer cancel()
		err := conn.Invoke(ctx, "/no.such.Service/Method", &emptypb.Empty{}, &emptypb.Empty{}) // of which istiod hears nothing
		if status.Code(err) != codes.Unimplemented {
			return fmt.Errorf("a method that is not there: %w", err)
		}
		return nil
	})
}

// TestIstiodRefusesNewcomer: the generation that istiod serves goes on, and says why the one that it refuses did not take over.
func TestIstiodRefusesNewcomer(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t)
	p.inject(t, lab.KubeletOptions{PostStart: manualWait, MaxRestartPeriod: lab.QuickRestarts})
	p.mustServe(t, 0, p.older)
	load := startLoad(t, p)
	i.set(status.Error(codes.PermissionDenied, "not this release"), nil)
	p.kruise.Upgrade(p.newer)
	lab.Eventually(t, settleWithin, "the newcomer is refused", func() error {
		attempt, err := p.lastAttempt(0)
		if err == nil && !strings.Contains(attempt.Reason, "not this release") {
			err = fmt.Errorf("the last hand-off: %+v", attempt)
		}
		return errors.Join(err, p.ready())
	})
	i.set(nil, func() {})
	p.kruise.WaitUpgraded(t)
	p.mustServe(t, 1, p.newer)
	i.mustHaveOneStream()
	load.check(t)
}

// TestTakeBackUnderIstiod: a generation whose newcomer dies in the probation has its stream all the time.
func TestTakeBackUnderIstiod(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t)
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	p.start(t, 1, p.newer, 2, 1)
	p.slot(1).Log.WaitFor(t, saysLetGo)
	p.slot(1).Kill()
	p.mustServe(t, 0, p.older)
	i.mustHaveOneStream()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.total != 2 {
		t.Errorf("istiod has had %d streams, want one of each generation", i.total)
	}
}

// TestRestartWithoutIstiod: a container that is started again while istiod is away serves as before.
func TestRestartWithoutIstiod(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t)
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	lab.Eventually(t, settleWithin, "the configuration is kept", func() error {
		if got := p.slot(0).Run(t, "/bin/sh", "-c", "grep -q http.example /var/lib/istio/data/istiod.resources"); got.Code != 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	i.stop()
	p.slot(0).Kill()
	p.start(t, 0, p.older, 1, 0)
	p.mustServe(t, 0, p.older)
	p.slot(0).Log.WaitFor(t, "istiod does not answer: Envoy starts with what it has said before")
	i.start()
	i.mustHaveOneStream()
}
