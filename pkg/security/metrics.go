package security

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"time"

	"understudy.mesh/pkg/status"
)

// Samples are the metrics. By the roots and the issuer it can be seen when the whole mesh has gone over to another CA.
func (m *Manager) Samples() []status.Sample {
	csr := map[string]string{"request_type": "csr"} // Istio's label
	samples := []status.Sample{
		{Name: "num_outgoing_requests", Help: "Requests to the CA.", Labels: csr, Value: float64(m.requests.Load())},
		{Name: "num_failed_outgoing_requests", Help: "Requests to the CA that have brought no certificate.", Labels: csr, Value: float64(m.failures.Load())},
		{Name: "num_outgoing_retries", Help: "Requests to the CA that were made because one before has failed.", Labels: csr, Value: float64(m.retries.Load())},
		{Name: "outgoing_latency", Help: "Time that requests to the CA have taken, all together, in milliseconds.", Labels: csr,
			Value: float64(m.waited.Load()) / float64(time.Millisecond)},
		{Name: "num_file_secret_failures_total", Help: "Times that files of a secret were in an invalid state for ten seconds.", Value: float64(m.files.invalid.Load())},
		{Name: "num_file_watcher_failures_total", Help: "Times that files of secrets could not be watched.", Value: float64(m.files.unseen.Load())},
	}
	if l := m.leaf(); l != nil {
		samples = append(samples,
			status.Sample{Name: "cert_expiry_seconds", Help: "Time until the certificate expires; negative: since it has.",
				Labels: map[string]string{"resource_name": Workload}, Gauge: true, Value: time.Until(l.notAfter).Seconds()},
			status.Sample{Name: "leaf_issuer_info", Help: "Who signed the workload's certificate.",
				Labels: map[string]string{"issuer": l.issuer}, Gauge: true, Value: 1})
	}
	roots, _ := m.roots() // none yet: none are told of
	for _, root := range roots {
		samples = append(samples, status.Sample{Name: "trust_root_info", Help: "A root that peers' certificates may end in.",
			Labels: map[string]string{"sha256": fingerprint(root)}, Gauge: true, Value: 1})
	}
	return samples
}

// leaf is what is told of the workload's certificate; nil: there is none.
func (m *Manager) leaf() *leaf {
	if m.files.has(Workload) {
		return m.files.leafOf(Workload)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mine == nil {
		return nil
	}
	return &leaf{m.mine.Obtained, m.mine.NotAfter, m.mine.Issuer}
}

// fingerprint is the SHA-256 of a certificate in PEM, as `openssl x509 -fingerprint -sha256` has it but for the colons.
func fingerprint(certificate string) string {
	block, _ := pem.Decode([]byte(certificate))
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:])
}
