package config

import (
	"net/netip"
	"slices"
	"testing"
)

// TestPodIPInStatistics: {pod_ip} stands for each address of the pod.
func TestPodIPInStatistics(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{
		NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("fd00::9")},
		Environ: []string{"PROXY_CONFIG=proxyStatsMatcher: {inclusionPrefixes: ['http.{pod_ip}_', other], inclusionSuffixes: [last], inclusionRegexps: ['a.*{pod_ip}']}"},
	})
	for name, tc := range map[string]struct{ got, want []string }{
		"prefixes": {cfg.StatsInclusionPrefixes, []string{"http.10.0.0.9_", "http.fd00::9_", "other"}},
		"suffixes": {cfg.StatsInclusionSuffixes, []string{"last"}},
		"regexps":  {cfg.StatsInclusionRegexps, []string{`a.*10\.0\.0\.9`, `a.*fd00::9`}},
	} {
		if !slices.Equal(tc.got, tc.want) {
			t.Errorf("%s: %q, want %q", name, tc.got, tc.want)
		}
	}
}
