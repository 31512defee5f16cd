package sidecar

import (
	"slices"
	"testing"

	"understudy.mesh/pkg/config"
)

// TestVitalListeners: a pod that says that it takes HBONE is not ready without the listeners for it; any other does without.
func TestVitalListeners(t *testing.T) {
	for value, want := range map[string][]string{
		"":      {"virtualOutbound", "virtualInbound"},
		"false": {"virtualOutbound", "virtualInbound"},
		"true":  {"virtualOutbound", "virtualInbound", "connect_terminate", "main_internal", "connect_originate"},
	} {
		c, _, err := config.Load(config.Sources{Environ: []string{"ISTIO_META_ENABLE_HBONE=" + value, "PEER_METADATA_DISCOVERY=false"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := vitalListeners(c); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}
