package agent

import (
	"context"
	"net/http"
	"time"

	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

// overview is what people see of this generation at a glance, in any role.
func (a *Agent) overview(ctx context.Context) overview.Overview {
	o := overview.Overview{Pod: a.cfg.PodName + "." + a.cfg.PodNamespace, Upgrade: a.upgradeStatus(ctx)}
	for i := range o.Upgrade.Generations {
		o.Upgrade.Generations[i].Sockets = nil // upgrade-status lists them
	}
	if s := a.current(); s != nil {
		o.Sidecar = s.Overview()
	}
	return o
}

func (a *Agent) overviewJSON(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	status.WriteJSON(w, a.overview(r.Context()))
}

func (a *Agent) overviewPage(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", overview.ContentSecurityPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	_ = a.overview(r.Context()).WriteHTML(w, time.Now()) // fails when the client has gone
}
