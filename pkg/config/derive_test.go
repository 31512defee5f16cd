package config

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
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

// TestExcludedInterfaces: the addresses of an interface that the pod's annotation names are not the pod's, but for its own.
func TestExcludedInterfaces(t *testing.T) {
	addrs := func(texts ...string) (all []netip.Addr) {
		for _, text := range texts {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	cfg, warnings := mustLoad(t, Sources{
		NodeIPs: addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"),
		Environ: []string{"INSTANCE_IP=10.0.0.3", "ISTIO_META_ISTIO_VERSION=1.32.0"},
		AddrsOf: func(name string) ([]netip.Addr, error) {
			if name == "gone" {
				return nil, errors.New("no such interface")
			}
			return addrs("10.0.0.2", "10.0.0.3"), nil
		},
		ReadFile: files(map[string]string{annotationsFile: `traffic.sidecar.istio.io/excludeInterfaces="net1,gone"`}),
	})
	if want := addrs("10.0.0.3", "10.0.0.1", "10.0.0.4"); !slices.Equal(cfg.NodeIPs, want) {
		t.Errorf("addresses %v, want %v", cfg.NodeIPs, want)
	}
	if len(warnings) != 1 || warnings[0].String() != `annotation: traffic.sidecar.istio.io/excludeInterfaces: "gone": no such interface` {
		t.Errorf("warnings %v", warnings)
	}
}

// TestCompat: one switch turns off what Istio's agent has not, but for what somebody asked for.
func TestCompat(t *testing.T) {
	type switches struct {
		cache, prefetch, hedge, keep, lastGood bool
		stale                                  time.Duration
	}
	for _, tc := range []struct {
		environ []string
		want    switches
	}{
		{nil, switches{true, true, true, true, true, time.Hour}},
		{[]string{"UNDERSTUDY_COMPAT=none"}, switches{true, true, true, true, true, time.Hour}},
		{[]string{"UNDERSTUDY_COMPAT=istio"}, switches{}},
		{[]string{"UNDERSTUDY_COMPAT=istio", "UNDERSTUDY_DNS_CACHE=on", "UNDERSTUDY_DNS_STALE=5m"}, switches{cache: true, stale: 5 * time.Minute}},
	} {
		c, _, err := Load(Sources{Environ: tc.environ})
		if err != nil {
			t.Fatal(err)
		}
		if got := (switches{c.DNSCache, c.DNSPrefetch, c.DNSHedge, c.KeepCertificate, c.LastGood, c.DNSStale}); got != tc.want {
			t.Errorf("%q: %+v, want %+v", tc.environ, got, tc.want)
		}
	}
	if _, _, err := Load(Sources{Environ: []string{"UNDERSTUDY_COMPAT=Istio"}}); err == nil || !strings.Contains(err.Error(), "UNDERSTUDY_COMPAT") || !strings.Contains(err.Error(), "want none or istio") {
		t.Errorf("error %v", err)
	}
}
