package proxywasm

import (
	"fmt"
	"net"
	"net/http"
	"sync"
)

// Private is a path that is answered with 401.
const Private = "/private"

// Server serves modules by path; any other path is answered with 404, but for Private. It is safe for concurrent use, and its zero value has none.
type Server struct {
	mu      sync.Mutex
	modules map[string][]byte
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	module, has := s.modules[r.URL.Path]
	s.mu.Unlock()
	if r.URL.Path == Private {
		http.Error(w, "nobody is known here", http.StatusUnauthorized)
		return
	}
	if !has {
		http.Error(w, "there is no such module", http.StatusNotFound)
		return
	}
	_, _ = w.Write(module)
}

// Put has a path serve a module from now on.
func (s *Server) Put(path string, m Module) { s.PutBytes(path, m.Bytes()) }

// PutBytes is Put for what may be no module.
func (s *Server) PutBytes(path string, module []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.modules == nil {
		s.modules = map[string][]byte{}
	}
	s.modules[path] = module
}

// Clear takes all modules away.
func (s *Server) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.modules)
}

// Start serves on l, which it owns, until the function is called that it returns.
func (s *Server) Start(l net.Listener) (stop func()) {
	server := &http.Server{Handler: s}
	go func() { _ = server.Serve(l) }()
	return func() { _ = server.Close() }
}

// Plugin is a WasmPlugin for the requests that come into a pod; more are further fields of its spec, ", field: value" each.
func Plugin(name, url, more string) string {
	return fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s}\nspec: {url: %q, match: [{mode: SERVER}]%s}\n", name, url, more)
}
