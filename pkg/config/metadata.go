package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"understudy.mesh/pkg/config/document"
)

const (
	// metaJSONPrefix begins the variables whose members become node metadata.
	metaJSONPrefix = "ISTIO_METAJSON_"
	// labelsVariable holds labels of a pod, or of a virtual machine, besides those of the downward API.
	labelsVariable = metaJSONPrefix + "LABELS"
	// localityLabel is where Istio puts the locality that it has found, whichever label had it.
	localityLabel = "istio-locality"
)

// given is an entry of the metadata that a variable gave.
type given struct {
	value        any
	source, name string // of the variable
}

// nodeMetadata builds the metadata of Envoy's node as Istio's agent does: what variables
// give, and over it what the agent knows by itself. istiod generates by it, and refuses a
// node in which an entry has another type than Istio's.
func (l *loader) nodeMetadata(c *Config) map[string]any {
	m := map[string]any{}
	for key, g := range l.givenMetadata() {
		value, err := spell(key, g.value)
		if err != nil && !l.hasProblem(g.source, g.name) { // it may be a setting, too
			l.problem(g.source, g.name, document.Text(g.value), err.Error())
		}
		if value != nil {
			m[key] = value
		}
	}
	l.addLabels(m)
	l.addAnnotations(m)
	if !l.isSet("peerMetadataDiscovery") {
		c.MetadataDiscovery = m["ENABLE_HBONE"] == "true"
		l.derived("peerMetadataDiscovery", c.MetadataDiscovery)
	}
	if len(l.platform.Metadata) > 0 {
		m["PLATFORM_METADATA"] = without("", l.platform.Metadata)
	}
	for key, value := range l.knownMetadata(c) {
		if !isZero(value) {
			m[key] = value
		}
	}
	if isZero(m["ISTIO_VERSION"]) {
		m["ISTIO_VERSION"] = istioVersion
		if c.ConfigDir == "" {
			l.warn(sourceEnv, "ISTIO_META_ISTIO_VERSION", "not set: istiod is told "+istioVersion+", and generates what a proxy of that release takes; set it to the release of the istiod")
		}
	}
	return m
}

// givenMetadata reads the variables with a metadata prefix, from the weakest to the
// strongest: a member of a JSON object goes over a variable of its own, the environment
// over proxyMetadata.
func (l *loader) givenMetadata() map[string]given {
	all := map[string]given{}
	l.eachVariable(metaPrefix, func(key string, g given) { all[key] = g })
	l.eachVariable(metaJSONPrefix, func(_ string, g given) {
		members, err := parseObject(g.value.(string))
		if err != nil {
			l.problem(g.source, g.name, g.value.(string), err.Error())
		}
		for key, member := range members {
			all[key] = given{member, g.source, g.name}
		}
	})
	return all
}

// eachVariable visits the variables that begin with prefix: those of proxyMetadata first.
func (l *loader) eachVariable(prefix string, visit func(key string, g given)) {
	visitOne := func(name, value, source string) {
		key, ok := strings.CutPrefix(name, prefix)
		switch {
		case !ok || key == "":
		case !utf8.ValidString(name + value):
			l.problem(source, name, value, document.ErrNotText.Error())
		default:
			visit(key, given{value, source, name})
		}
	}
	for _, name := range sortedKeys(l.metadata) {
		if _, over := l.env[name]; !over {
			visitOne(name, l.metadata[name].value, l.metadata[name].source)
		}
	}
	for _, name := range sortedKeys(l.env) {
		visitOne(name, l.env[name], sourceEnv)
	}
}

// knownMetadata are the entries that the agent itself gives; an empty one leaves what a
// variable gave. Ports are numbers, switches "true": Istio's types.
func (l *loader) knownMetadata(c *Config) map[string]any {
	known := map[string]any{
		"NAME":                             c.PodName,
		"NAMESPACE":                        c.PodNamespace,
		"SERVICE_ACCOUNT":                  c.ServiceAccount,
		"INSTANCE_IPS":                     joinAddrs(c),
		"PROXY_CONFIG":                     l.effectiveProxyConfig(c),
		"OUTLIER_LOG_PATH":                 c.OutlierLogPath,
		"ENVOY_STATUS_PORT":                int(c.ReadyPort),
		"ENVOY_PROMETHEUS_PORT":            int(c.StatsPort),
		"ENVOY_SKIP_DEPRECATED_LOGS":       onlyTrue(c.SkipDeprecatedLogs),
		"EXIT_ON_ZERO_ACTIVE_CONNECTIONS":  onlyTrue(c.ExitOnZeroActiveConnections),
		"METADATA_DISCOVERY":               strconv.FormatBool(c.MetadataDiscovery),
		"DNS_PROXY_ADDR":                   l.env["DNS_PROXY_ADDR"],
		"WORKLOAD_IDENTITY_SOCKET_FILE":    c.IdentitySocketFile,
		"ENVOY_SECURE_METRICS_PORT":        int(c.SecureStatsPort),
		"ENVOY_SECURE_MERGED_METRICS_PORT": int(c.SecureMergedStatsPort),
	}
	if host, _, err := net.SplitHostPort(c.DiscoveryAddress); err == nil && c.ControlPlaneMutualTLS && c.ConfigDir == "" {
		known["PILOT_SAN"] = []any{pilotSAN(host)}
	}
	return known
}

// pilotSAN is the name in istiod's certificate: by whatever name this machine calls
// itself, a local istiod has that of the service.
func pilotSAN(host string) string {
	if host == "localhost" {
		return "istiod.istio-system.svc"
	}
	return host
}

func onlyTrue(b bool) string {
	if b {
		return "true"
	}
	return ""
}

// addLabels sets STATIC_LABELS, which ISTIO_METAJSON_LABELS gives, and LABELS: those,
// overlaid by the pod's own. The hash of the pod's template changes with every rollout
// and would split statistics.
func (l *loader) addLabels(m map[string]any) {
	text, ok := l.env[labelsVariable]
	if !ok {
		text = l.metadata[labelsVariable].value
	}
	if labels, err := parseObject(text); err == nil && len(labels) > 0 { // givenMetadata reports the error
		if _, err := stringMap(labels); err != nil {
			l.problem(sourceEnv, labelsVariable, text, err.Error())
		}
		m["STATIC_LABELS"], m["LABELS"] = labels, labels
	}
	if l.labels != nil {
		static, _ := m["STATIC_LABELS"].(map[string]any)
		all := without("pod-template-hash", l.labels)
		for key, value := range static {
			if _, own := all[key]; !own {
				all[key] = value
			}
		}
		m["LABELS"] = all
	}
	labels, _ := m["LABELS"].(map[string]any)
	if len(labels) == 0 {
		delete(m, "LABELS")
		return
	}
	if found := locality(labels); found != "" {
		labels[localityLabel] = found
	}
}

// addAnnotations adds the pod's own annotations to ANNOTATIONS, but for the one that
// repeats the pod's whole manifest.
func (l *loader) addAnnotations(m map[string]any) {
	all := without("kubectl.kubernetes.io/last-applied-configuration", l.annotations)
	if more, ok := m["ANNOTATIONS"].(map[string]any); ok {
		for key, value := range more {
			if _, own := all[key]; !own {
				all[key] = value
			}
		}
	}
	if len(all) > 0 {
		m["ANNOTATIONS"] = all
	}
}

// spell gives an entry the form in which istiod reads it; nil leaves it out.
func spell(key string, value any) (any, error) {
	switch key {
	case "DNS_CAPTURE", "DNS_AUTO_ALLOCATE", "ENABLE_HBONE", "DISABLE_HBONE_SEND", "ENABLE_SELF_DISCOVERY",
		"EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "INBOUND_LISTENER_EXACT_BALANCE", "OUTBOUND_LISTENER_EXACT_BALANCE",
		"METADATA_DISCOVERY", "ENVOY_SKIP_DEPRECATED_LOGS":
		if value == "" { // a manifest's variable that is filled from what is not there
			return nil, nil
		}
		b, err := parseBool(document.Text(value))
		return strconv.FormatBool(b), err
	case "POD_PORTS":
		return podPorts(value)
	case "LABELS", "STATIC_LABELS", "ANNOTATIONS", "PLATFORM_METADATA":
		return stringMap(value)
	case "ENVOY_STATUS_PORT", "ENVOY_PROMETHEUS_PORT", "ENVOY_SECURE_METRICS_PORT", "ENVOY_SECURE_MERGED_METRICS_PORT",
		"PROXY_CONFIG", "PILOT_SAN": // the agent's own say
		return nil, nil
	}
	if _, ok := value.(string); !ok && slices.Contains(textEntries(), key) {
		return nil, fmt.Errorf("want a string for %s, as istiod reads it", key)
	}
	return value, nil
}

// textEntries are those that istiod reads as a string.
func textEntries() []string {
	return []string{
		"APP_CONTAINERS", "AUTO_REGISTER_GROUP", "BASE", "CLOUDRUN_ADDR", "CLUSTER_ID", "DNS_PROXY_ADDR", "GENERATOR", "HTTP10",
		"HTTP_PROXY_PORT", "IDLE_TIMEOUT", "INSTANCE_IPS", "INTERCEPTION_MODE", "ISTIO_PROXY_SHA", "ISTIO_REVISION", "ISTIO_VERSION",
		"MESH_ID", "NAME", "NAMESPACE", "NETWORK", "NODE_NAME", "OUTLIER_LOG_PATH", "OWNER", "REQUESTED_NETWORK_VIEW",
		"SERVICE_ACCOUNT", "STS_PORT", "TLS_CLIENT_CERT_CHAIN", "TLS_CLIENT_KEY", "TLS_CLIENT_ROOT_CERT", "TLS_SERVER_CERT_CHAIN",
		"TLS_SERVER_KEY", "TLS_SERVER_ROOT_CERT", "UNPRIVILEGED_POD", "WORKLOAD_ENTRY", "WORKLOAD_IDENTITY_SOCKET_FILE", "WORKLOAD_NAME",
	}
}

// podPort is what istiod reads of a container's port.
type podPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

// podPorts reads POD_PORTS, a JSON array in a string, and writes it without white space.
func podPorts(value any) (any, error) {
	text, ok := value.(string)
	if text == "" && ok {
		return nil, nil
	}
	var ports []podPort
	if !ok || json.Unmarshal([]byte(text), &ports) != nil {
		return nil, errors.New(`want the ports as a JSON array in a string, such as [{"containerPort":8080,"protocol":"TCP"}]`)
	}
	if len(ports) == 0 {
		return text, nil
	}
	compact, err := json.Marshal(ports)
	return string(compact), err
}

// stringMap wants a map of strings.
func stringMap(value any) (any, error) {
	m, ok := value.(map[string]any)
	for _, member := range m {
		if _, isText := member.(string); !isText {
			ok = false
		}
	}
	if !ok {
		return nil, errors.New("want a JSON object of strings")
	}
	return m, nil
}

// parseObject reads a JSON object of bounded size; "" is an empty one.
func parseObject(text string) (map[string]any, error) {
	var members map[string]any
	if text != "" && (len(text) > document.MaxBytes || json.Unmarshal([]byte(text), &members) != nil) {
		return nil, fmt.Errorf("want a JSON object of at most %d bytes", document.MaxBytes)
	}
	return members, nil
}

// without copies all members but one.
func without(key string, m map[string]string) map[string]any {
	all := map[string]any{}
	for k, value := range m {
		if k != key {
			all[k] = value
		}
	}
	return all
}

func joinAddrs(c *Config) string {
	texts := make([]string, len(c.NodeIPs))
	for i, ip := range c.NodeIPs {
		texts[i] = ip.String()
	}
	return strings.Join(texts, ",")
}

// isZero tells whether an entry says nothing.
func isZero(value any) bool {
	switch value := value.(type) {
	case string:
		return value == ""
	case int:
		return value == 0
	case map[string]any:
		return len(value) == 0
	}
	return value == nil
}
