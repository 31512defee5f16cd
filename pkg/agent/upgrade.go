package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"understudy.mesh/hotrestart/handoff"
	"understudy.mesh/pkg/agent/internal/sidecar"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

// lookTimeout bounds how long a command waits for what the other generations say.
const lookTimeout = 3 * time.Second

func (a *Agent) current() *sidecar.Sidecar {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shown.sidecar
}

// update changes what commands, metrics and the other generations are told.
func (a *Agent) update(change func(*shown)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.shown)
}

// show publishes the loop's role, and returns whether it is another than before.
func (a *Agent) show() (changed bool) {
	role := a.loop.Role
	a.update(func(s *shown) {
		if changed = role != s.role; changed {
			s.role, s.since = role, time.Now()
		}
	})
	if a.server != nil {
		a.showOthers(role)
	}
	return changed
}

// showOthers tells the other generations.
func (a *Agent) showOthers(role handoff.Role) {
	self := a.self()
	told, err := json.Marshal(details{EnvoyVersion: self.EnvoyVersion, HotRestartVersion: self.HotRestartVersion, Drain: self.Drain, Requests: self.Requests, Sockets: self.Sockets, LastAttempt: self.LastAttempt})
	report := handoff.Report{Role: role, Since: self.Since, Leaving: a.loop.Stopping, Left: self.Connections, Details: told}
	if err == nil {
		err = a.server.SetReport(report)
	}
	if err != nil { // too long, for one: what matters is the role
		a.log.Debug("the other generations are not told all of this one", "err", err)
		report.Details = nil
		err = a.server.SetReport(report)
	}
	if err != nil {
		a.log.Warn("the other generations are not told of this one's role", "err", err)
	}
}

// details is what a generation tells of itself for people.
type details struct {
	EnvoyVersion      string             `json:"envoy,omitempty"`
	HotRestartVersion string             `json:"hotRestart,omitempty"`
	Drain             *contract.Drain    `json:"drain,omitempty"`
	Requests          *contract.Requests `json:"requests,omitempty"`
	Sockets           []string           `json:"sockets,omitempty"`
	LastAttempt       *contract.Attempt  `json:"lastAttempt,omitempty"`
}

// self is what upgrade-status shows of this generation.
func (a *Agent) self() contract.GenerationStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	g := generationStatus(a.me)
	g.Self, g.Role, g.Since, g.Connections, g.Drain = true, string(a.shown.role), a.shown.since, a.shown.left, a.shown.drain
	g.Requests = a.shown.requests
	if a.shown.attempt != nil {
		attempt := *a.shown.attempt
		g.LastAttempt = &attempt
	}
	if s := a.shown.sidecar; s != nil {
		g.Sockets = s.Sockets.Names()
		g.EnvoyVersion, g.HotRestartVersion = s.EnvoyVersion(), s.Envoy.HotRestartVersion()
	}
	return g
}

func generationStatus(i handoff.Identity) contract.GenerationStatus {
	return contract.GenerationStatus{
		ID: i.ID, Started: i.Started, AgentVersion: i.AgentVersion, EnvoyVersion: i.EnvoyVersion,
		HotRestartVersion: i.HotRestartVersion, SidecarSetVersion: i.Version, SidecarSetVersionAlt: i.Alt,
	}
}

func (a *Agent) beginAttempt(with string, takingOver bool) {
	attempt := contract.Attempt{At: time.Now(), With: with, TakingOver: takingOver, Result: resultRunning}
	a.update(func(s *shown) { s.attempt = &attempt })
}

// maxSteps bounds those of one attempt: there are about ten.
const maxSteps = 20

// step notes what has happened in the attempt that began last.
func (a *Agent) step(format string, args ...any) {
	what := fmt.Sprintf(format, args...)
	a.update(func(s *shown) {
		if s.attempt == nil || len(s.attempt.Steps) >= maxSteps {
			return
		}
		next := *s.attempt // others may have the one before
		next.Steps = append(next.Steps, contract.Step{At: time.Now(), What: what})
		s.attempt = &next
	})
}

// finishAttempt notes how the hand-off ended.
func (a *Agent) finishAttempt(result string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.shown.attempt == nil {
		return
	}
	took := time.Since(a.shown.attempt.At)
	finished := *a.shown.attempt
	finished.Result, finished.Seconds = result, took.Seconds()
	finished.Steps = append(finished.Steps, contract.Step{At: finished.At.Add(took), What: result})
	if err != nil {
		finished.Reason = err.Error()
	}
	a.shown.attempt = &finished
	if finished.TakingOver {
		a.shown.notTaken = ""
		if result != resultSuccess {
			a.shown.notTaken = finished.Reason
		}
	}
	a.shown.upgrades[[2]string{result, reasonClass(result, finished.TakingOver, err)}]++
	if result == resultSuccess {
		a.shown.durations.observe(took)
	}
}

// reasonClass is the reason in a word, for a metric's label.
func reasonClass(result string, takingOver bool, err error) string {
	var refused *handoff.RefusedError
	switch {
	case result == resultSuccess && takingOver:
		return "took_over"
	case result == resultSuccess:
		return "handed_over"
	case errors.As(err, &refused):
		return string(refused.Code)
	case errors.As(err, new(*handoff.AbortedError)):
		return "aborted"
	case errors.Is(err, handoff.ErrLost):
		return "lost"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "other"
}

// predecessorDrained tells whether a generation before this one has drained already.
func (a *Agent) predecessorDrained() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.shown.predecessor != nil && a.shown.predecessor.Done
}

// roleStatus is what `wait` asks for.
func (a *Agent) roleStatus() control.RoleStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := control.RoleStatus{Role: string(a.shown.role), UpgradeDrainSeconds: a.cfg.UpgradeDrainDuration.Seconds()}
	if a.shown.failure != "" {
		r.Failed, r.Reason = true, a.shown.failure
		return r
	}
	switch a.shown.role {
	case handoff.RoleServing, handoff.RoleDraining:
		r.Settled = true
	case handoff.RoleHandingOff: // a cold start can be taken over from before it is over
		if s := a.shown.sidecar; s != nil && sidecar.IsClosed(s.InForce()) {
			r.Settled = true
		} else {
			r.Reason = a.pending()
		}
	case handoff.RoleStandby:
		r.Settled = a.shown.successorServes
		if !r.Settled {
			r.Reason = "standing by for generation " + a.shown.successor + ", which does not serve yet"
		}
	default:
		r.Reason = a.pending()
	}
	switch {
	case !r.Settled:
	case a.shown.role == handoff.RoleDraining:
		r.Reason = "this generation drains"
	case a.shown.predecessor != nil && !a.shown.predecessor.Done:
		r.Reason = "the generation before drains"
	default:
		r.Drained = true
	}
	return r
}

// pending says what a starting generation waits for. a.mu is held.
func (a *Agent) pending() string {
	if a.shown.notTaken == "" {
		return a.unready()
	}
	failed := "the last take-over failed: " + a.shown.notTaken
	if a.shown.attempt.Result == resultRunning || a.shown.sidecar != nil {
		return failed + "; now: " + a.unready()
	}
	return failed
}

// unready says what this generation lacks. a.mu is held.
func (a *Agent) unready() string {
	if s := a.shown.sidecar; s != nil {
		var reasons []string
		_, pending := s.Ready.Check()
		for _, p := range pending {
			reasons = append(reasons, p.Task+": "+p.Reason)
		}
		if len(reasons) > 0 {
			return strings.Join(reasons, "; ")
		}
		return "everything is in force; the generation before has not let go for good yet"
	}
	return "the agent is starting"
}

// upgradeStatus is what `upgrade-status` asks for.
func (a *Agent) upgradeStatus(ctx context.Context) contract.UpgradeStatus {
	u := contract.UpgradeStatus{HandoffDir: a.cfg.HandoffDir, Off: a.off, Generations: []contract.GenerationStatus{a.self()}}
	self := &u.Generations[0]
	if a.dir == nil {
		u.HandoffDir = ""
		return u
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var asking sync.WaitGroup
	if s := a.current(); s != nil && self.Requests == nil {
		asking.Go(func() { self.Requests = s.Requests(ctx) })
	}
	neighbours, err := a.dir.Look(ctx)
	asking.Wait()
	if err != nil {
		u.Off = err.Error()
	}
	for _, n := range neighbours {
		u.Generations = append(u.Generations, neighbourStatus(n))
	}
	slices.SortFunc(u.Generations[1:], func(x, y contract.GenerationStatus) int { return y.Started.Compare(x.Started) })
	return u
}

func neighbourStatus(n handoff.Neighbour) contract.GenerationStatus {
	if n.Err != nil {
		return contract.GenerationStatus{ID: n.ID, Error: n.Err.Error()}
	}
	g := generationStatus(n.Report.Identity)
	g.ID, g.Role, g.Since, g.Connections = n.ID, string(n.Report.Role), n.Report.Since, n.Report.Left
	var d details
	if err := json.Unmarshal(n.Report.Details, &d); err != nil && len(n.Report.Details) > 0 {
		g.Error = "its details cannot be read: " + err.Error()
	}
	g.Drain, g.Requests, g.Sockets, g.LastAttempt = d.Drain, d.Requests, d.Sockets, d.LastAttempt
	if d.EnvoyVersion != "" {
		g.EnvoyVersion, g.HotRestartVersion = d.EnvoyVersion, d.HotRestartVersion
	}
	return g
}

// controlHandler answers the commands of this container, whatever the agent's role.
func (a *Agent) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(control.StatusPrefix+"/", http.StripPrefix(control.StatusPrefix, a.ofSidecar(func(s *sidecar.Sidecar) http.Handler { return s.Status.Local() })))
	mux.Handle(control.AdminPrefix+"/", http.StripPrefix(control.AdminPrefix, a.ofSidecar(func(s *sidecar.Sidecar) http.Handler { return s.Status.LocalAdmin() })))
	mux.HandleFunc(control.RolePath, a.answerRole)
	mux.HandleFunc(http.MethodPost+" "+control.WaitingPath, a.attendWait)
	mux.HandleFunc(http.MethodPost+" "+control.WaitFailedPath, a.hearWaitFailed)
	mux.HandleFunc(control.UpgradePath, func(w http.ResponseWriter, r *http.Request) { status.WriteJSON(w, a.upgradeStatus(r.Context())) })
	mux.HandleFunc(overview.Path, a.overviewJSON)
	return mux
}

// ofSidecar passes requests to the sidecar that there is at the moment.
func (a *Agent) ofSidecar(handler func(*sidecar.Sidecar) http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := a.current()
		if s == nil {
			http.Error(w, "this agent has no Envoy: its role is "+a.roleStatus().Role, http.StatusServiceUnavailable)
			return
		}
		handler(s).ServeHTTP(w, r)
	})
}

// upgradeSamples are the metrics of hot upgrades.
func (a *Agent) upgradeSamples() []status.Sample {
	a.mu.Lock()
	defer a.mu.Unlock()
	envoyVersion := ""
	if s := a.shown.sidecar; s != nil {
		envoyVersion = s.EnvoyVersion()
	}
	left := float64(a.shown.left)
	if p := a.shown.predecessor; p != nil {
		left += float64(p.Left)
	}
	samples := []status.Sample{
		{Name: "draining_connections", Help: "Connections that the generation before still serves.", Gauge: true, Value: left},
		{Name: "generation_info", Help: "The generation that answers.", Gauge: true, Value: 1, Labels: map[string]string{
			"generation": a.me.ID, "role": string(a.shown.role), "agent": a.me.AgentVersion, "envoy": envoyVersion,
		}},
	}
	for labels, n := range a.shown.upgrades {
		samples = append(samples, status.Sample{
			Name: "upgrade_total", Help: "Hand-offs in which this generation took part.", Value: float64(n),
			Labels: map[string]string{"result": labels[0], "reason": labels[1]},
		})
	}
	if d := a.shown.durations; d.count > 0 {
		samples = append(samples, status.Sample{Name: "upgrade_duration_seconds", Help: "How long hand-offs took.", Histogram: d.histogram()})
	}
	return samples
}

// tell shows everybody the role as it is now.
func (a *Agent) tell() {
	if a.show() {
		a.log.Info("role", "role", a.loop.Role, "generation", a.me.ID)
	}
	if a.loop.Settled {
		a.noteWaitFailed("")
	}
}
