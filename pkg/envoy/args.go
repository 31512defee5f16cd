// Package envoy owns one Envoy process: its command line, its start on a thread
// that outlives it, its end and the reason for it, and its admin API. It also reaps
// what is orphaned to the agent when that is PID 1.
package envoy

import (
	"strconv"
	"strings"
	"time"
)

const (
	// defaultDrain is Istio's ProxyConfig.drainDuration.
	defaultDrain = 45 * time.Second
	// defaultFlush is how often Envoy writes out access logs that do not fill a
	// buffer; Istio's value (Envoy's own is 10 s), so that a log can be followed.
	defaultFlush = time.Second
	// defaultLevel is Istio's --proxyLogLevel.
	defaultLevel = "warning"
)

// Options are the settings that Envoy takes from its command line. The zero value of
// each but ConfigPath is a default.
type Options struct {
	// ConfigPath is the bootstrap file; its suffix tells Envoy the format (.json, .pb).
	ConfigPath string
	// DrainDuration is --drain-time-s, cut to whole seconds; 0 is 45 s. A value under a
	// second becomes 1 s: with 0 Envoy exits at once on a graceful drain.
	DrainDuration time.Duration
	// LogLevel is a level, or Istio's list of a level and of component:level pairs
	// ("info,misc:error"); "" is warning.
	LogLevel string
	// ComponentLogLevel is a list of component:level pairs. Pairs in LogLevel win.
	ComponentLogLevel string
	// Concurrency is the number of worker threads; 0 leaves it to Envoy: one a CPU.
	Concurrency int
	// LocalIPv6 makes Envoy's idea of its own address an IPv6 one; Istio sets it when
	// the pod has no IPv4 address.
	LocalIPv6 bool
	// SkipDeprecatedLogs silences warnings about deprecated fields.
	SkipDeprecatedLogs bool
	// CoreDump lets Envoy raise its core limit.
	CoreDump bool
	// OverrideYAML is merged over the file by Envoy; JSON is YAML too. "" is none.
	OverrideYAML string
	// FileFlushInterval is how often access logs are written out; 0 is 1 s.
	FileFlushInterval time.Duration
	// FileFlushMinSizeKB is the size of the buffer of an access log in KiB; 0 is Envoy's
	// default, 64.
	FileFlushMinSizeKB uint32
	// HotRestart are the arguments that make Envoy part of a hot restart; none is
	// --disable-hot-restart.
	HotRestart []string
}

// Args gives Envoy's arguments, without the program's name, in the order in which
// Istio's agent gives them, so that `ps` and whoever parses it see no difference.
func Args(o Options) []string {
	level, components := levels(o.LogLevel)
	if level == "" {
		level = defaultLevel
	}
	_, base := levels(o.ComponentLogLevel)
	components = append(base, components...)

	version := "v4"
	if o.LocalIPv6 {
		version = "v6"
	}
	args := []string{
		"-c", o.ConfigPath,
		"--drain-time-s", strconv.Itoa(max(int(or(o.DrainDuration, defaultDrain)/time.Second), 1)),
		"--drain-strategy", "immediate",
		"--local-address-ip-version", version,
		"--file-flush-interval-msec", strconv.FormatInt(max(or(o.FileFlushInterval, defaultFlush).Milliseconds(), 1), 10),
	}
	if len(o.HotRestart) == 0 {
		args = append(args, "--disable-hot-restart")
	}
	args = append(args, o.HotRestart...)
	args = append(args, "--allow-unknown-static-fields")
	if o.FileFlushMinSizeKB > 0 {
		args = append(args, "--file-flush-min-size-kb", strconv.FormatUint(uint64(o.FileFlushMinSizeKB), 10))
	}
	args = append(args, "-l", level)
	if len(components) > 0 {
		args = append(args, "--component-log-level", strings.Join(components, ","))
	}
	if o.SkipDeprecatedLogs {
		args = append(args, "--skip-deprecated-logs")
	}
	if o.CoreDump {
		args = append(args, "--enable-core-dump")
	}
	if o.OverrideYAML != "" {
		args = append(args, "--config-yaml", o.OverrideYAML)
	}
	if o.Concurrency > 0 {
		args = append(args, "--concurrency", strconv.Itoa(o.Concurrency))
	}
	return args
}

// levels splits Istio's form of a log level: the last bare word is the level, parts
// of the form component:level are components, in their order; other parts are dropped,
// as Istio does. level is "" when there is none.
func levels(s string) (level string, components []string) {
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		component, l, paired := strings.Cut(part, ":")
		switch {
		case part == "":
		case !paired:
			level = part
		case component != "" && l != "" && !strings.Contains(l, ":"):
			components = append(components, part)
		}
	}
	return level, components
}

func or(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}
