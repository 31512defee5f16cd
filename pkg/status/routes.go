package status

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/pprof"
	"path"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
)

// maxPostBody is how much of a POST to /drain or /quitquitquit is looked at;
// neither has a body.
const maxPostBody = 4 << 10

// Local is the handler of the status port with nobody refused for where they
// come from: the agent serves it on its own container's control socket, after
// it has checked the peer's credentials.
func (s *Server) Local() http.Handler { return s.statusHandler(guard{trustPeer: true}) }

// LocalAdmin is the same for the admin port.
func (s *Server) LocalAdmin() http.Handler { return s.adminHandler(guard{trustPeer: true}) }

// statusHandler routes the status port.
func (s *Server) statusHandler(g guard) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(contract.ReadyPath, s.readyHandler())
	metrics := methods(s.scrape, http.MethodGet, http.MethodHead)
	if s.cfg.MetricsLoopbackOnly {
		metrics = g.local(metrics)
	}
	mux.Handle(contract.MetricsPath, metrics)
	mux.Handle("/metrics", metrics)
	if s.cfg.Upgrade != nil {
		mux.Handle(contract.UpgradePath, methods(s.cfg.Upgrade, http.MethodGet, http.MethodHead))
	}
	mux.Handle("/quitquitquit", g.local(s.ask("quit", s.cfg.Quit)))
	mux.Handle(contract.DrainPath, g.local(s.ask("drain", s.cfg.Drain)))
	mux.Handle(contract.ProbePrefix, s.probes)
	mux.Handle(contract.HookPrefix, s.probes)
	// Every page below /debug/ is for loopback only, those that do not exist
	// included: a 403 there says nothing of what there is.
	mux.Handle("/debug/", g.local(s.debugHandler()))
	return mux
}

// probeHandler routes the kubelet's port: readiness and nothing else.
func (s *Server) probeHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(contract.ReadyPath, s.readyHandler())
	return mux
}

// adminHandler is Envoy's admin API, where /quitquitquit is ours: passed on, it
// would end Envoy behind the agent's back. No ServeMux: it would redirect
// paths that Envoy takes as they are.
func (s *Server) adminHandler(g guard) http.Handler {
	quit := s.ask("quit", s.cfg.Quit)
	return g.local(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case path.Clean("/"+r.URL.Path) == "/quitquitquit":
			quit.ServeHTTP(w, r)
		case s.cfg.Admin == nil:
			http.Error(w, "there is no Envoy", http.StatusServiceUnavailable)
		default:
			s.cfg.Admin.ServeHTTP(w, r)
		}
	}))
}

// readyHandler answers 200, or 503 with a line for each thing that is pending.
func (s *Server) readyHandler() http.Handler {
	return methods(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ready, pending := s.cfg.Ready.Check()
		if !ready && s.cfg.StandIn != nil {
			if s.cfg.StandIn(w, r) {
				return
			}
			ready, pending = s.cfg.Ready.Check() // it may have waited
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if ready {
			io.WriteString(w, "ready\n")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, p := range pending {
			fmt.Fprintln(w, p)
		}
	}), http.MethodGet, http.MethodHead)
}

// ask is the handler of a POST that asks for something.
func (s *Server) ask(what string, do func(context.Context) error) http.Handler {
	return methods(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if do == nil {
			http.Error(w, what+" is not available in this role", http.StatusServiceUnavailable)
			return
		}
		io.CopyN(io.Discard, r.Body, maxPostBody) // a client that sends a body wants it read
		s.log.Info("asked over HTTP", "for", what, "peer", r.RemoteAddr)
		if err := do(context.WithoutCancel(r.Context())); err != nil {
			s.log.Error("cannot do what was asked over HTTP", "for", what, "error", err)
			http.Error(w, fmt.Sprintf("%s: %v", what, err), http.StatusInternalServerError)
			return
		}
		io.WriteString(w, "OK")
	}), http.MethodPost)
}

// debugHandler routes everything below /debug/.
func (s *Server) debugHandler() http.Handler {
	mux := http.NewServeMux()
	if s.cfg.Index != nil {
		mux.Handle("/debug/{$}", methods(s.cfg.Index, http.MethodGet, http.MethodHead))
	}
	for p, h := range s.cfg.Debug {
		mux.Handle(p, h)
	}
	if s.cfg.Profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// checkDebugPaths rejects what http.ServeMux would panic on, and what is not
// below /debug/ or is taken.
func checkDebugPaths(pages map[string]http.Handler) error {
	for _, p := range slices.Sorted(maps.Keys(pages)) {
		name, below := strings.CutPrefix(p, "/debug/")
		clean := path.Clean(p) == strings.TrimSuffix(p, "/")
		if !below || !clean || name == "" || strings.ContainsAny(p, "{} \t") || strings.HasPrefix(name, "pprof") || pages[p] == nil {
			return fmt.Errorf("status server: debug page %q: want a clean path below /debug/, other than pprof, with a handler", p)
		}
	}
	return nil
}
