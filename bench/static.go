package main

import (
	"encoding/json"
	"net/http"
	"os"

	"understudy.mesh/tests/lab"
)

// aloneAdmin is where the Envoy that runs alone has its admin.
const aloneAdmin = "127.0.0.1:15000"

// configDump is the part of Envoy's /config_dump that makes a bootstrap (envoy.admin.v3.ConfigDump).
type configDump struct {
	Configs []struct {
		Bootstrap             map[string]any `json:"bootstrap"`
		DynamicActiveClusters []struct {
			Cluster json.RawMessage `json:"cluster"`
		} `json:"dynamic_active_clusters"`
		DynamicListeners []struct {
			ActiveState struct {
				Listener json.RawMessage `json:"listener"`
			} `json:"active_state"`
		} `json:"dynamic_listeners"`
	} `json:"configs"`
}

// writeStaticConfig asks the running Envoy for everything that it has loaded, and writes it as a
// bootstrap without any xDS.
func writeStaticConfig(t lab.T, l *lab.Lab, path string) {
	status, body, err := l.Pod.Get("http://127.0.0.1:" + lab.AdminPort + "/config_dump")
	if err != nil || status != http.StatusOK {
		t.Fatalf("read Envoy's configuration: %d, %v", status, err)
	}
	var dump configDump
	if err := json.Unmarshal([]byte(body), &dump); err != nil {
		t.Fatalf("decode Envoy's configuration: %v", err)
	}
	data, err := json.Marshal(staticBootstrap(t, dump))
	if err != nil {
		t.Fatalf("encode the static configuration: %v", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatalf("write the static configuration: %v", err)
	}
}

// staticBootstrap moves the dynamic resources into the bootstrap.
func staticBootstrap(t lab.T, dump configDump) map[string]any {
	var bootstrap map[string]any
	var clusters, listeners []any
	for _, c := range dump.Configs {
		if c.Bootstrap != nil {
			bootstrap = c.Bootstrap
		}
		for _, cluster := range c.DynamicActiveClusters {
			clusters = append(clusters, withoutType(t, cluster.Cluster))
		}
		for _, listener := range c.DynamicListeners {
			listeners = append(listeners, withoutType(t, listener.ActiveState.Listener))
		}
	}
	if bootstrap == nil || len(clusters) == 0 || len(listeners) == 0 {
		t.Fatalf("Envoy's configuration has %d clusters and %d listeners", len(clusters), len(listeners))
	}
	delete(bootstrap, "dynamic_resources")
	node, _ := bootstrap["node"].(map[string]any)
	for _, key := range []string{"extensions", "user_agent_build_version", "user_agent_name"} {
		delete(node, key) // Envoy fills them in itself
	}
	bootstrap["admin"] = map[string]any{"address": map[string]any{
		"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 15000},
	}}
	resources, _ := bootstrap["static_resources"].(map[string]any)
	own, _ := resources["clusters"].([]any)
	resources["clusters"] = append(own, clusters...)
	own, _ = resources["listeners"].([]any)
	resources["listeners"] = append(own, listeners...)
	return bootstrap
}

// withoutType decodes a resource of the dump, which is an Any where a message is wanted.
func withoutType(t lab.T, resource json.RawMessage) map[string]any {
	var m map[string]any
	if err := json.Unmarshal(resource, &m); err != nil {
		t.Fatalf("decode a resource of Envoy's configuration: %v", err)
	}
	delete(m, "@type")
	return m
}
