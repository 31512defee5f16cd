package config

import "strings"

// Effect says what becomes of a setting.
type Effect int

// An Effective setting fills a Config field. UnderIstiod is for one that is effective under
// istiod, which itself may be the one that acts on it, and is warned of with configDir. The two
// others are read and checked, so that manifests of other agents and of older releases work,
// and change nothing; a Warned one says so in the log.
const (
	Effective Effect = iota
	UnderIstiod
	NoEffect
	Warned
)

// Setting is one row of the table: one thing that can be set, under every name it has.
// The command line is made of its exported fields.
type Setting struct {
	name       string // in the dump and the reference page; unique
	Flag       string // of `proxy`, without dashes
	Env        string // also read from proxyMetadata, with lower precedence
	metadata   string // read from proxyMetadata only
	annotation string // of the pod
	proxy      string // path in ProxyConfig
	mesh       string // path in MeshConfig
	Kind       Kind
	envKind    Kind   // of Env where it is another than Kind
	Default    string // parsed as Kind; "" leaves the field's zero value
	Doc        string // one line
	Effect     Effect
	why        string // of a row without effect or field
	field      string // of Config; "" for a row without effect
	group      string // chapter of the reference page
	Global     bool   // a flag of every command, not of `proxy` alone
	secret     bool   // masked wherever values are shown
	flagZero   bool   // "0" on the command line means not set, as in Istio
	emptyEnv   bool   // an empty variable is set too: it turns the setting off
}

// in is the name of a setting in a source.
func (s Setting) in(source string) string {
	switch {
	case source == sourceFlag:
		return "--" + s.Flag
	case source == sourceEnv || strings.HasSuffix(source, "proxyMetadata"):
		return s.Env
	case source == sourceAnnotation:
		return s.annotation
	}
	return s.name
}

// Settings returns the whole table, in the order of the reference page. Each call makes a
// new one, which the caller may keep.
func Settings() []Setting {
	var all []Setting
	for _, chapter := range []struct {
		group string
		rows  []Setting
	}{
		{"The pod", podSettings()},
		{"The control plane and the mesh", meshSettings()},
		{"The way to istiod", istiodSettings()},
		{"The workload's certificate", certificateSettings()},
		{"Envoy", envoySettings()},
		{"What Envoy sends and shows", append(bootstrapSettings(), extensionSettings()...)},
		{"Draining and ending", lifeSettings()},
		{"Hot upgrade", upgradeSettings()},
		{"The agent's servers", serverSettings()},
		{"DNS", dnsSettings()},
		{"Wasm modules", wasmSettings()},
		{"The log", logSettings()},
		{"Metadata of Envoy's node, for istiod", metadataSettings()},
		{"Accepted without effect", acceptedSettings()},
	} {
		for _, s := range chapter.rows {
			s.group = chapter.group
			if s.envKind == 0 {
				s.envKind = s.Kind
			}
			all = append(all, s)
		}
	}
	return all
}
