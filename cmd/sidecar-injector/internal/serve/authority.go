package serve

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"understudy.mesh/cmd/sidecar-injector/internal/certs"
)

// authority is the last state of the authority that could be read. A Secret that is gone or broken does not take it away.
type authority struct {
	mu    sync.Mutex
	state certs.State
}

func (a *authority) get() certs.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

func (a *authority) set(s certs.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = s
}

// parseSecret is the state in a Secret.
func parseSecret(secret *unstructured.Unstructured) (certs.State, error) {
	encoded, _, err := unstructured.NestedStringMap(secret.Object, "data")
	if err != nil {
		return certs.State{}, err
	}
	data := make(map[string][]byte, len(encoded))
	for key, value := range encoded {
		if data[key], err = base64.StdEncoding.DecodeString(value); err != nil {
			return certs.State{}, fmt.Errorf("key %s: %w", key, err)
		}
	}
	return certs.Parse(data)
}

// signer keeps the certificate of this replica valid.
type signer struct {
	options   Options
	serving   *certs.Serving
	authority *authority
	secret    func() *unstructured.Unstructured // as it is known; nil: there is none
	log       *slog.Logger
	now       func() time.Time
	problem   string // the last one that was logged
}

// run goes on until ctx ends. wake asks for a look before its time.
func (s *signer) run(ctx context.Context, wake <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		changed, err := s.look()
		switch {
		case err != nil && err.Error() != s.problem:
			s.log.Error("no new certificate", "err", err)
			s.problem = err.Error()
		case err == nil:
			s.problem = ""
		}
		if changed {
			s.log.Info("new certificate")
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

func (s *signer) look() (changed bool, err error) {
	if !s.options.ownAuthority() {
		return s.serving.Load(s.options.CertFile, s.options.KeyFile)
	}
	if secret := s.secret(); secret != nil {
		if state, err := parseSecret(secret); err != nil {
			s.log.Debug("the Secret of the authority cannot be read", "err", err)
		} else if !state.IsZero() {
			s.authority.set(state)
		}
	}
	state := s.authority.get()
	if state.IsZero() {
		return false, nil // the keeper makes one
	}
	return s.serving.Sign(state, s.options.serverNames(), s.now(), s.options.Lives)
}
