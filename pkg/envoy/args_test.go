package envoy

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestArgs(t *testing.T) {
	for name, tc := range map[string]struct {
		options Options
		want    string
	}{
		"defaults": {
			Options{ConfigPath: "/c.json"},
			"-c /c.json --drain-time-s 45 --drain-strategy immediate --local-address-ip-version v4 " +
				"--file-flush-interval-msec 1000 --disable-hot-restart --allow-unknown-static-fields -l warning",
		},
		"everything": {
			Options{
				ConfigPath: "/c.pb", DrainDuration: 5 * time.Second, LogLevel: "info,http:debug", ComponentLogLevel: "misc:error",
				Concurrency: 2, LocalIPv6: true, SkipDeprecatedLogs: true, CoreDump: true, OverrideYAML: "{}",
				FileFlushInterval: 250 * time.Millisecond, FileFlushMinSizeKB: 8,
			},
			"-c /c.pb --drain-time-s 5 --drain-strategy immediate --local-address-ip-version v6 " +
				"--file-flush-interval-msec 250 --disable-hot-restart --allow-unknown-static-fields --file-flush-min-size-kb 8 " +
				"-l info --component-log-level misc:error,http:debug --skip-deprecated-logs --enable-core-dump --config-yaml {} --concurrency 2",
		},
		"a drain time of no whole second": {
			Options{ConfigPath: "/c", DrainDuration: time.Millisecond, FileFlushInterval: time.Microsecond},
			"-c /c --drain-time-s 1 --drain-strategy immediate --local-address-ip-version v4 " +
				"--file-flush-interval-msec 1 --disable-hot-restart --allow-unknown-static-fields -l warning",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, strings.Join(Args(tc.options), " ")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLevels(t *testing.T) {
	for _, tc := range []struct {
		in, level, components string
	}{
		{"", "", ""},
		{"info", "info", ""},
		{"info,misc:error", "info", "misc:error"},
		{"misc:error", "", "misc:error"},
		{"a:debug,info,b:trace,warning", "warning", "a:debug,b:trace"},
		{" info , misc:error ", "info", "misc:error"},
		{"info,a:b:c,:x,y:,,", "info", ""},
	} {
		level, components := levels(tc.in)
		if level != tc.level || strings.Join(components, ",") != tc.components {
			t.Errorf("Levels(%q) = %q, %q; want %q, %q", tc.in, level, components, tc.level, tc.components)
		}
	}
}

// FuzzLevels: whatever a user writes, the parts are such that Envoy's parser finds the
// same ones when they are joined again.
func FuzzLevels(f *testing.F) {
	f.Add("info,misc:error")
	f.Add("a:b:c,,:")
	f.Fuzz(func(t *testing.T, s string) {
		level, components := levels(s)
		joined := strings.Join(append(components, level), ",")
		level2, components2 := levels(joined)
		if level2 != level || strings.Join(components2, ",") != strings.Join(components, ",") {
			t.Errorf("Levels(%q) = %q, %q, and of these again %q, %q", s, level, components, level2, components2)
		}
	})
}
