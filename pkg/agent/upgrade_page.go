package agent

import (
	"context"
	"net/http"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/status"
)

// upgradePageAge is how old an answer of the upgradePage may be. Whoever follows an upgrade asks about once a second.
const upgradePageAge = 500 * time.Millisecond

// upgradePage answers everybody who reaches the status port what `upgrade-status -o json` prints, but for the names of the
// sockets, which are nobody's business there. However many ask, the other generations are asked by one at a time, and not more
// often than upgradePageAge says.
type upgradePage struct {
	look func(context.Context) contract.UpgradeStatus // takes lookTimeout at most

	turn   chan struct{} // of one: who looks has put something in, and who comes meanwhile waits for that answer
	seen   contract.UpgradeStatus
	seenAt time.Time
}

func newUpgradePage(look func(context.Context) contract.UpgradeStatus) *upgradePage {
	return &upgradePage{look: look, turn: make(chan struct{}, 1)}
}

// ServeHTTP implements http.Handler.
func (p *upgradePage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case p.turn <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	// The answer is not only for the one who happens to be first, and may go.
	seen := p.latest(context.WithoutCancel(r.Context()))
	<-p.turn
	w.Header().Set("Cache-Control", "no-store")
	status.WriteJSON(w, seen)
}

// latest is for who has the turn.
func (p *upgradePage) latest(ctx context.Context) contract.UpgradeStatus {
	if p.seenAt.IsZero() || time.Since(p.seenAt) > upgradePageAge {
		p.seen = p.look(ctx)
		for i := range p.seen.Generations {
			p.seen.Generations[i].Sockets = nil
		}
		p.seenAt = time.Now()
	}
	return p.seen
}
