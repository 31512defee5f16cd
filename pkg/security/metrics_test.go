package security

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestSamples: what an operator sees of a CA that is away at first, and of the certificate that it gives then.
func TestSamples(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, config(nil))
		samples := func() map[string]float64 {
			values := make(map[string]float64)
			for _, s := range b.m.Samples() {
				values[s.Name] = s.Value
				if v, ok := s.Labels["sha256"]; ok && len(v) != 64 {
					t.Errorf("the SHA-256 of a root is %q", v)
				}
				if v, ok := s.Labels["issuer"]; ok && v != "CN=root" {
					t.Errorf("the issuer is %q", v)
				}
			}
			return values
		}
		b.set(true)
		b.start()
		defer func() { b.stop() }()
		if got := samples(); got["num_outgoing_requests"] != 1 || got["num_failed_outgoing_requests"] != 1 || got["num_outgoing_retries"] != 0 {
			t.Errorf("after one request that has failed: %v", got)
		} else if _, there := got["cert_expiry_seconds"]; there {
			t.Errorf("a certificate that is not there: %v", got)
		}
		b.set(false)
		pass(backoffFirst)
		got := samples()
		if got["num_outgoing_requests"] != 2 || got["num_failed_outgoing_requests"] != 1 || got["num_outgoing_retries"] != 1 {
			t.Errorf("after one more that has not: %v", got)
		}
		if left := time.Duration(got["cert_expiry_seconds"]) * time.Second; left < defaultLifetime-time.Minute || left > defaultLifetime {
			t.Errorf("the certificate lasts for %v, want a day", left)
		}
		if got["leaf_issuer_info"] != 1 || got["trust_root_info"] != 1 {
			t.Errorf("issuer and root: %v", got)
		}
	})
}
