package envoy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
)

// Names of the statistics that readiness and the end look at.
const (
	statServerState    = "server.state"
	statWorkersStarted = "listener_manager.workers_started"
	statCDSSuccess     = "cluster_manager.cds.update_success"
	statCDSRejected    = "cluster_manager.cds.update_rejected"
	statLDSSuccess     = "listener_manager.lds.update_success"
	statLDSRejected    = "listener_manager.lds.update_rejected"

	stateFilter = `^(server\.state|listener_manager\.workers_started|` +
		`cluster_manager\.cds\.update_(success|rejected)|listener_manager\.lds\.update_(success|rejected))$`
)

// Gauges that are asked for while Envoy has much to do.
var (
	gaugeWorkers          = gauge{statWorkersStarted, "envoy_listener_manager_workers_started"}
	gaugeWarmingClusters  = gauge{"cluster_manager.warming_clusters", "envoy_cluster_manager_warming_clusters"}
	gaugeWarmingListeners = gauge{"listener_manager.total_listeners_warming", "envoy_listener_manager_total_listeners_warming"}
	gaugeStreams          = gauge{"cluster.xds-grpc.upstream_rq_active", "envoy_cluster_upstream_rq_active"} // package bootstrap names the cluster
)

// serverState is Envoy's life-cycle (envoy.admin.v3.ServerInfo.State, the gauge
// server.state).
type serverState uint64

const (
	// live is the state of an Envoy that serves.
	live serverState = 0
	// noState is that of an Envoy that has not yet published one.
	noState serverState = 1<<64 - 1
)

// String gives the name that Envoy's own API has for the state.
func (s serverState) String() string {
	names := [...]string{live: "LIVE", "DRAINING", "PRE_INITIALIZING", "INITIALIZING"}
	if s == noState {
		return "UNKNOWN"
	}
	if s < serverState(len(names)) {
		return names[s]
	}
	return "STATE_" + strconv.FormatUint(uint64(s), 10)
}

// updates counts the configuration updates of one type that Envoy took or refused.
type updates struct{ success, rejected uint64 }

// state is what readiness depends on.
type state struct {
	server         serverState
	workersStarted bool
	cds, lds       updates
}

// isLive is nil when Envoy is live (GET /ready). The question costs it next to nothing.
func (a *Admin) isLive(ctx context.Context) error {
	body, _, err := a.Open(ctx, "/ready")
	if err != nil {
		return err
	}
	return body.Close()
}

// workersRun is nil when Envoy's workers run.
func (a *Admin) workersRun(ctx context.Context) error {
	stats, err := a.gauges(ctx, gaugeWorkers)
	if err == nil && stats[statWorkersStarted] == 0 {
		err = errWorkers
	}
	return err
}

// errWorkers is what is pending last, in the words of Istio's agent.
var errWorkers = errors.New("workers have not yet started")

// state asks Envoy for its state. An error means that Envoy could not be asked; what
// is pending in an Envoy that answers is state.ready's matter.
func (a *Admin) state(ctx context.Context) (state, error) {
	stats, err := a.stats(ctx, "", stateFilter)
	if err != nil {
		return state{server: noState}, err
	}
	return stateOf(stats), nil
}

func stateOf(stats map[string]uint64) state {
	s := state{
		server:         noState,
		workersStarted: stats[statWorkersStarted] > 0,
		cds:            updates{stats[statCDSSuccess], stats[statCDSRejected]},
		lds:            updates{stats[statLDSSuccess], stats[statLDSRejected]},
	}
	if v, ok := stats[statServerState]; ok {
		s.server = serverState(v)
	}
	return s
}

// ready is nil when Envoy serves its whole configuration. The error says what is
// pending, in the words of Istio's agent where it has them.
//
// Envoy counts updates, not resources: with a configuration in several responses it
// is ready in this sense after the first. xds.Server.Applied knows about all of them.
func (s state) ready() error {
	for _, t := range []struct {
		name string
		updates
	}{{"cds", s.cds}, {"lds", s.lds}} {
		switch {
		case t.success > 0:
		case t.rejected > 0:
			return fmt.Errorf("configuration was received, but rejected: %s", s.updates())
		default:
			return fmt.Errorf("configuration has not been fully received (waiting for %s): %s", t.name, s.updates())
		}
	}
	if s.server != live {
		return fmt.Errorf("server is not live, current state is: %v", s.server)
	}
	if !s.workersStarted {
		return errWorkers
	}
	return nil
}

func (s state) updates() string {
	return fmt.Sprintf("cds updates: %d successful, %d rejected; lds updates: %d successful, %d rejected",
		s.cds.success, s.cds.rejected, s.lds.success, s.lds.rejected)
}

// Warming gives the numbers of clusters and of listeners that Envoy has accepted but
// does not use yet, because something that they need (a DNS answer) is not there.
func (a *Admin) Warming(ctx context.Context) (clusters, listeners uint64, err error) {
	stats, err := a.gauges(ctx, gaugeWarmingClusters, gaugeWarmingListeners)
	if err != nil {
		return 0, 0, err
	}
	return stats[gaugeWarmingClusters.name], stats[gaugeWarmingListeners.name], nil
}

// counters gives every counter that was written to since Envoy's start.
func (a *Admin) counters(ctx context.Context) (map[string]uint64, error) {
	return a.stats(ctx, "type=Counters&", ".*")
}
