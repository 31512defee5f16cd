package config

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// metaJSONPrefix begins the variables whose members become node metadata.
const metaJSONPrefix = "ISTIO_METAJSON_"

// nodeMetadata builds the metadata of Envoy's node: typed entries first, then what
// the variables add under other names. Values have Istio's encodings:
// booleans and numbers as strings, lists comma-joined.
func (l *loader) nodeMetadata(c *Config) map[string]any {
	m := map[string]any{
		"NAME":                            c.PodName,
		"NAMESPACE":                       c.PodNamespace,
		"SERVICE_ACCOUNT":                 c.ServiceAccount,
		"ISTIO_VERSION":                   l.src.Version,
		"INSTANCE_IPS":                    joinAddrs(c),
		"PROXY_CONFIG":                    l.effectiveProxyConfig(c),
		"ANNOTATIONS":                     without("kubectl.kubernetes.io/last-applied-configuration", l.annotations), // that repeats the pod's whole manifest
		"OUTLIER_LOG_PATH":                c.OutlierLogPath,
		"ENVOY_STATUS_PORT":               strconv.Itoa(int(c.ReadyPort)),
		"ENVOY_PROMETHEUS_PORT":           strconv.Itoa(int(c.StatsPort)),
		"ENVOY_SKIP_DEPRECATED_LOGS":      strconv.FormatBool(c.SkipDeprecatedLogs),
		"EXIT_ON_ZERO_ACTIVE_CONNECTIONS": strconv.FormatBool(c.ExitOnZeroActiveConnections),
	}
	if c.DNSCapture {
		m["DNS_PROXY_ADDR"] = c.DNSAddrs[0].String()
	}
	if host, _, err := net.SplitHostPort(c.DiscoveryAddress); err == nil && c.ConfigDir == "" {
		m["PILOT_SAN"] = []any{host}
	}
	for key, value := range m {
		if empty(value) {
			delete(m, key)
		}
	}
	l.addLabels(m)
	l.addMeta(m)
	return m
}

// addMeta adds the variables with a metadata prefix, the environment's before those of
// proxyMetadata.
func (l *loader) addMeta(m map[string]any) {
	for _, name := range sortedKeys(l.env) {
		l.addMetaVariable(m, name, l.env[name], sourceEnv)
	}
	for _, name := range sortedKeys(l.metadata) {
		l.addMetaVariable(m, name, l.metadata[name].value, l.metadata[name].source)
	}
}

func (l *loader) addMetaVariable(m map[string]any, name, value, source string) {
	if key, ok := strings.CutPrefix(name, metaPrefix); ok && key != "" {
		if !utf8.ValidString(name + value) {
			l.problem(source, name, value, errNotText.Error())
			return
		}
		addIfAbsent(m, key, value)
		return
	}
	if !strings.HasPrefix(name, metaJSONPrefix) || value == "" {
		return
	}
	members, err := parseObject(value)
	if err != nil {
		l.problem(source, name, value, err.Error())
	}
	for key, member := range members {
		addIfAbsent(m, key, member)
	}
}

// parseObject reads a JSON object of bounded size.
func parseObject(text string) (map[string]any, error) {
	var members map[string]any
	if len(text) > maxInput || json.Unmarshal([]byte(text), &members) != nil {
		return nil, fmt.Errorf("want a JSON object of at most %d bytes", maxInput)
	}
	return members, nil
}

func addIfAbsent(m map[string]any, key string, value any) {
	if _, taken := m[key]; !taken {
		m[key] = value
	}
}

// addLabels adds STATIC_LABELS, which ISTIO_METAJSON_LABELS gives, and LABELS: those,
// overlaid by the pod's own. The hash of the pod's template changes with every rollout
// and would split statistics.
func (l *loader) addLabels(m map[string]any) {
	const labels = metaJSONPrefix + "LABELS"
	text := cmp.Or(l.env[labels], l.metadata[labels].value)
	all := map[string]any{}
	if static, err := parseObject(text); err == nil { // addMeta reports the error
		maps.Copy(all, static)
		m["STATIC_LABELS"] = static
	}
	maps.Copy(all, without("pod-template-hash", l.labels))
	if len(all) > 0 {
		m["LABELS"] = all
	}
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

// effectiveProxyConfig is the effective ProxyConfig in its JSON form, for a control plane
// that reads it from the node: the fields that were set and those that have a default
// here. Fields that Istio's API has dropped stay out.
func (l *loader) effectiveProxyConfig(c *Config) map[string]any {
	tree := map[string]any{
		"configPath":               c.ConfigPath,
		"binaryPath":               c.BinaryPath,
		"drainDuration":            protoDuration(c.DrainDuration),
		"terminationDrainDuration": protoDuration(c.TerminationDrainDuration),
		"discoveryAddress":         c.DiscoveryAddress,
		"proxyAdminPort":           int64(c.AdminPort),
		"statusPort":               int64(c.StatusPort),
		"serviceCluster":           c.ServiceCluster,
	}
	for key, value := range l.proxy {
		if _, ours := tree[key]; !ours && key != "parentShutdownDuration" && key != "connectTimeout" {
			tree[key] = value
		}
	}
	if len(l.metadata) > 0 {
		entries := map[string]any{}
		for key, m := range l.metadata {
			entries[key] = m.value
		}
		tree["proxyMetadata"] = entries
	}
	return tree
}

// protoDuration is a duration as protojson spells it: seconds, with a fraction.
func protoDuration(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}

func joinAddrs(c *Config) string {
	texts := make([]string, len(c.NodeIPs))
	for i, ip := range c.NodeIPs {
		texts[i] = ip.String()
	}
	return strings.Join(texts, ",")
}

func empty(v any) bool {
	switch v := v.(type) {
	case string:
		return v == ""
	case map[string]any:
		return len(v) == 0
	}
	return false
}
