package security

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"understudy.mesh/pkg/security/credential"
)

// maxHandedOver bounds what is taken over, in bytes: a chain and its roots.
const maxHandedOver = 4 << 20

// handedOver is what a successor gets. It has the private key: it travels over the hand-off socket, whose peer is of the same uid,
// and lies in memory alone.
type handedOver struct {
	Chain    string               `json:"chain"` // PEM, as all of them
	Key      string               `json:"key"`
	Roots    []string             `json:"roots"`
	OldRoots map[string]time.Time `json:"oldRoots,omitempty"` // and when they go
	Bundle   []string             `json:"bundle,omitempty"`
	Obtained time.Time            `json:"obtained"`
}

// Export is what a successor has to know so that it needs no certificate of its own; nil: there is nothing.
func (m *Manager) Export() []byte {
	c := m.newest()
	if c == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data, err := json.Marshal(handedOver{string(c.Chain), string(c.Key), c.Roots, m.trust.old, m.trust.bundle, c.Obtained})
	if err != nil { // it has nothing that JSON lacks
		m.log.Error("the certificate is not handed over", "err", err)
		return nil
	}
	return data
}

// Import takes over what a predecessor exports, before Run. What cannot be used is left out with one line in the log: then
// the CA is asked.
func (m *Manager) Import(data []byte) {
	if len(data) == 0 {
		return
	}
	now := time.Now()
	c, old, bundle, err := m.read(data, now)
	if err != nil {
		m.log.Warn("the predecessor's certificate is not used: the CA is asked for another", "err", err)
		return
	}
	m.change(func() {
		m.mine, m.reason = c, nil
		m.trust.current, m.trust.bundle = c.Roots, bundle
		for root, until := range old {
			if limit := now.Add(m.oldRoots(c)); until.After(limit) {
				until = limit // this generation's settings count
			}
			m.trust.keep(root, until)
		}
		m.trust.expire(now)
	})
	m.log.Info("the workload has its predecessor's certificate", "id", m.c.id(), "issuer", c.Issuer, "until", c.NotAfter)
}

// read checks what a predecessor exports as if a CA had signed it now.
func (m *Manager) read(data []byte, now time.Time) (c *credential.Credential, old map[string]time.Time, bundle []string, err error) {
	if len(data) > maxHandedOver {
		return nil, nil, nil, fmt.Errorf("%d bytes, more than %d", len(data), maxHandedOver)
	}
	var h handedOver
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, nil, nil, errors.New("it cannot be read") // the error itself may quote the key
	}
	parts := credential.Parts{Chain: []byte(h.Chain), Key: []byte(h.Key), Roots: []byte(strings.Join(h.Roots, ""))}
	c, err = credential.New(parts, m.c.id(), h.Obtained, now)
	if err != nil {
		return nil, nil, nil, err
	}
	old = make(map[string]time.Time)
	for text, until := range h.OldRoots {
		roots, err := credential.Roots([]byte(text))
		if err != nil {
			return nil, nil, nil, fmt.Errorf("a root from before: %w", err)
		}
		for _, root := range roots {
			old[root] = until
		}
	}
	if len(h.Bundle) > 0 {
		if bundle, err = credential.Roots(credential.Join(h.Bundle)); err != nil {
			return nil, nil, nil, fmt.Errorf("a root that the mesh adds: %w", err)
		}
	}
	return c, old, bundle, nil
}
