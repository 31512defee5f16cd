package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// statNameLength is the default of a field that Envoy has long dropped and Istio still sends.
const statNameLength = 189

// effectiveProxyConfig is the ProxyConfig of all sources in the form of protojson, for
// istiod, which prefers it to the mesh's own: the fields that were set, over Istio's defaults.
func (l *loader) effectiveProxyConfig(c *Config) map[string]any {
	tree := map[string]any{"statNameLength": statNameLength}
	for key, value := range l.proxy {
		tree[key] = value
	}
	tree["configPath"] = c.ConfigPath
	tree["binaryPath"] = c.BinaryPath
	tree["drainDuration"] = protoDuration(c.DrainDuration)
	tree["terminationDrainDuration"] = protoDuration(c.TerminationDrainDuration)
	tree["discoveryAddress"] = c.DiscoveryAddress
	tree["proxyAdminPort"] = c.AdminPort
	tree["statusPort"] = c.StatusPort
	tree["controlPlaneAuthPolicy"] = authPolicy(c.ControlPlaneMutualTLS)
	if !l.tracingName() {
		delete(tree, "tracingServiceName")
		tree["serviceCluster"] = c.ServiceCluster
	}
	if l.isSet("concurrency") {
		tree["concurrency"] = c.Concurrency
	}
	if len(l.metadata) > 0 {
		entries := map[string]any{}
		for key, m := range l.metadata {
			entries[key] = m.value
		}
		tree["proxyMetadata"] = entries
	}
	canonical, err := canonicalProxyConfig(tree)
	if err != nil {
		l.problem("ProxyConfig", "of all sources", "", err.Error())
	}
	return canonical
}

// canonicalProxyConfig spells each value as protojson does, and drops fields that Istio's
// API has dropped, which the agent still reads and istiod does not know.
func canonicalProxyConfig(tree map[string]any) (map[string]any, error) {
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, err
	}
	var message meshv1alpha1.ProxyConfig
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &message); err != nil {
		return nil, fmt.Errorf("want fields that go together: %w", err)
	}
	if text, err = protojson.Marshal(&message); err != nil {
		return nil, err
	}
	var canonical map[string]any
	err = json.Unmarshal(text, &canonical)
	return canonical, err
}

func authPolicy(mutualTLS bool) string {
	if mutualTLS {
		return "MUTUAL_TLS"
	}
	return "NONE"
}

// protoDuration is a duration as protojson spells it: seconds, with a fraction.
func protoDuration(d time.Duration) string {
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}
