package config

// Effect says what becomes of a setting.
type Effect int

// An Effective setting fills a Config field. The two others are read and checked, so
// that manifests of other agents and of older releases work, and change nothing;
// a Warned one says so in the log.
const (
	Effective Effect = iota
	NoEffect
	Warned
)

// Group is a chapter of the reference page.
type Group string

// The chapters, in the order of the page.
const (
	GroupPod      Group = "The pod"
	GroupMesh     Group = "The control plane and the mesh"
	GroupEnvoy    Group = "Envoy"
	GroupLife     Group = "Draining and ending"
	GroupUpgrade  Group = "Hot upgrade"
	GroupServers  Group = "The agent's servers"
	GroupDNS      Group = "DNS"
	GroupLog      Group = "The log"
	GroupAccepted Group = "Accepted without effect"
)

// Setting is one row of the table: one thing that can be set, under every name it has.
type Setting struct {
	Name       string // in the dump and the reference page; unique
	Flag       string // of `proxy`, without dashes
	Env        string // also read from proxyMetadata, with lower precedence
	Metadata   string // read from proxyMetadata only
	Annotation string // of the pod
	Proxy      string // path in ProxyConfig
	Mesh       string // path in MeshConfig
	Kind       Kind
	EnvKind    Kind   // of Env where it is another than Kind
	Default    string // parsed as Kind; "" leaves the field's zero value
	Doc        string // one line
	Effect     Effect
	Why        string // of a row without effect or field
	Field      string // of Config; "" for a row without effect
	Group      Group
	Global     bool // a flag of every command, not of `proxy` alone
	Secret     bool // masked wherever values are shown
	FlagZero   bool // "0" on the command line means not set, as in Istio
	EmptyEnv   bool // an empty variable is set too: it turns the setting off
}

// Settings returns the whole table, in the order of the reference page. It is made
// anew by each call and the caller's to keep.
func Settings() []Setting {
	var all []Setting
	for _, chapter := range []struct {
		group Group
		rows  []Setting
	}{
		{GroupPod, podSettings()},
		{GroupMesh, meshSettings()},
		{GroupEnvoy, envoySettings()},
		{GroupLife, lifeSettings()},
		{GroupUpgrade, upgradeSettings()},
		{GroupServers, serverSettings()},
		{GroupDNS, dnsSettings()},
		{GroupLog, logSettings()},
		{GroupAccepted, acceptedSettings()},
	} {
		for _, s := range chapter.rows {
			s.Group = chapter.group
			if s.EnvKind == 0 {
				s.EnvKind = s.Kind
			}
			all = append(all, s)
		}
	}
	return all
}
