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

// group is a chapter of the reference page.
type group string

// The chapters, in the order of the page.
const (
	groupPod      group = "The pod"
	groupMesh     group = "The control plane and the mesh"
	groupEnvoy    group = "Envoy"
	groupLife     group = "Draining and ending"
	groupUpgrade  group = "Hot upgrade"
	groupServers  group = "The agent's servers"
	groupDNS      group = "DNS"
	groupLog      group = "The log"
	groupAccepted group = "Accepted without effect"
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
	group      group
	Global     bool // a flag of every command, not of `proxy` alone
	secret     bool // masked wherever values are shown
	flagZero   bool // "0" on the command line means not set, as in Istio
	emptyEnv   bool // an empty variable is set too: it turns the setting off
}

// Settings returns the whole table, in the order of the reference page. Each call makes a
// new one, which the caller may keep.
func Settings() []Setting {
	var all []Setting
	for _, chapter := range []struct {
		group group
		rows  []Setting
	}{
		{groupPod, podSettings()},
		{groupMesh, meshSettings()},
		{groupEnvoy, envoySettings()},
		{groupLife, lifeSettings()},
		{groupUpgrade, upgradeSettings()},
		{groupServers, serverSettings()},
		{groupDNS, dnsSettings()},
		{groupLog, logSettings()},
		{groupAccepted, acceptedSettings()},
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
