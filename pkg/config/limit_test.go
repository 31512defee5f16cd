package config

import (
	"strings"
	"testing"
)

// TestConnectionLimit: ProxyConfig's field goes before Istio's variable, against the order of all
// other settings.
func TestConnectionLimit(t *testing.T) {
	const variable = "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS="
	const field = sourceProxyConfig + "={connectionSettings: {globalDownstreamConnectionLimit: 300}}"
	for name, tc := range map[string]struct {
		environ []string
		want    uint32
		problem string
	}{
		"unset":        {want: 0},
		"the variable": {environ: []string{variable + "200"}, want: 200},
		"the field":    {environ: []string{field}, want: 300},
		"both":         {environ: []string{variable + "200", field}, want: 300},
		"by metadata":  {environ: []string{sourceProxyConfig + "={proxyMetadata: {" + strings.TrimSuffix(variable, "=") + ": '100'}}"}, want: 100},
		"not a number": {environ: []string{variable + "many"}, problem: `environment: ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS="many": want a whole number, 1 to 2147483647`},
		"none":         {environ: []string{variable + "0"}, problem: "1 to 2147483647"},
		"too many":     {environ: []string{variable + "2147483648"}, problem: "1 to 2147483647"},
		"none at all":  {environ: []string{sourceProxyConfig + "={connectionSettings: {globalDownstreamConnectionLimit: 0}}"}, problem: "1 to 2147483647"},
	} {
		cfg, warnings, err := Load(Sources{Environ: append(tc.environ, "ISTIO_META_ISTIO_VERSION=1.32.0")})
		if tc.problem != "" {
			if err == nil || !strings.Contains(err.Error(), tc.problem) {
				t.Errorf("%s: %v, want %s", name, err, tc.problem)
			}
			continue
		}
		if err != nil || cfg.ConnectionLimit != tc.want || len(warnings) > 0 {
			t.Errorf("%s: %v, %v, %v; want %d", name, cfg, warnings, err, tc.want)
		}
	}
}
