// Package agent owns one life of the agent's process: its role among the generations
// of its pod, and, while it serves, one Envoy with all that the agent does for it: the
// embedded control plane, DNS, XDS, status, from the first bound socket to the last
// drained connection.
package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/envoy"
)

// New checks what can be checked before anything starts, and takes this generation's
// places: the control socket, and the hand-off directory. What it took is given back
// when it fails.
func New(cfg *config.Config, world World) (_ *Agent, err error) {
	a := &Agent{
		cfg: cfg, world: world, log: world.Log("agent"), me: identity(cfg, world),
		events: make(chan event, eventQueue), quit: make(chan struct{}), noDrain: make(chan struct{}), told: make(chan struct{}),
		cutOff: make(chan struct{}),
		shown:  shown{upgrades: map[[2]string]int{}},
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	if err := sidecar.CheckBinary(cfg.BinaryPath); err != nil {
		return nil, err
	}
	if err := sidecar.CheckCapability(cfg); err != nil {
		return nil, err
	}
	if err := sidecar.CheckCompliance(cfg); err != nil {
		return nil, err
	}
	a.control, err = control.Listen()
	if errors.Is(err, control.ErrHeld) { // by whom no agent may be stopped; commands may have to wait
		err = nil
	}
	if err != nil && (cfg.HandoffDir == "" || !errors.Is(err, control.ErrTaken)) {
		return nil, err
	}
	if cfg.HandoffDir == "" {
		a.off = "no hand-off directory: give --handoffDir, or mount a volume that both containers share at /etc/asm/uds"
	} else if openErr := a.openHandoff(); openErr != nil {
		a.off = openErr.Error()
		a.log.Warn("no hot upgrade: this agent neither takes over nor can be taken over", "err", openErr)
	}
	if err != nil && a.dir == nil { // nothing can come of two agents in one place
		return nil, err
	}
	return a, nil
}

func identity(cfg *config.Config, world World) handoff.Identity {
	var random [4]byte
	rand.Read(random[:])
	return handoff.Identity{
		ID: hex.EncodeToString(random[:]), PodUID: cfg.PodUID, AgentVersion: world.Version,
		Version: cfg.SidecarSetVersion, Alt: cfg.SidecarSetVersionAlt,
		Started: world.Started, Boot: world.Boot, Force: cfg.Takeover == config.TakeoverForce,
	}
}

// openHandoff takes this generation's place in the hand-off directory.
func (a *Agent) openHandoff() error {
	dir, err := handoff.OpenDir(a.cfg.HandoffDir, a.me)
	if err != nil {
		return err
	}
	server, err := handoff.NewServer(dir, handoff.Report{Role: handoff.RoleStarting, Since: a.world.Started}, a.world.Log("hotrestart"))
	if err != nil {
		return errors.Join(err, dir.Close())
	}
	a.dir, a.server = dir, server
	return nil
}

// Run lives through the roles until a stop that was asked for is over (nil, if the agent was
// ready before, or stood by), or until something ends the agent; an *envoy.ExitError carries the
// status that the process should end with. It returns when every goroutine and Envoy are gone.
func (a *Agent) Run(ctx context.Context) error {
	base, endBase := context.WithCancel(context.WithoutCancel(ctx))
	var servers sync.WaitGroup
	serve := func(what string, run func(context.Context) error) {
		servers.Go(func() {
			if err := run(base); err != nil {
				a.log.Error(what+" serves no more", "err", err)
			}
		})
	}
	if a.world.Init {
		serve("the reaper of orphans", func(ctx context.Context) error { envoy.ReapOrphans(ctx, a.log); return nil })
	}
	serve("the control socket", func(ctx context.Context) error {
		return control.Serve(ctx, a.control, a.controlHandler(), a.log)
	})
	if a.server != nil {
		serve("the hand-off socket", a.server.Run)
	}
	err := a.runRoles(ctx, base)
	a.farewell(ctx)
	endBase()
	servers.Wait()
	a.close()
	a.log.Info("stopped")
	return err
}

// quitAtOnce ends the agent without a drain (POST /quitquitquit).
func (a *Agent) quitAtOnce(context.Context) error {
	a.quitOnce.Do(func() { close(a.quit) })
	return nil
}

// drainEnvoy closes Envoy's listeners to new connections while everything goes on
// serving; a later stop does not drain again (POST /drain).
func (a *Agent) drainEnvoy(ctx context.Context) error {
	s := a.current()
	if s == nil {
		return errors.New("this agent stands by and has no Envoy to drain")
	}
	if err := s.DrainInbound(ctx); err != nil {
		return fmt.Errorf("drain Envoy: %w", err)
	}
	a.skipDrain()
	return nil
}

func (a *Agent) skipDrain() { a.noDrainOnce.Do(func() { close(a.noDrain) }) }

// close gives back what New took.
func (a *Agent) close() {
	if a.control != nil {
		a.control.Close()
	}
	if a.dir != nil {
		a.dir.Close()
	}
}
