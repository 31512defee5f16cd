package wasm

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// What an Envoy takes to try a module: measured on 1.40.0, 15 MiB of its own, and up to 8 times the code that it compiles.
const (
	trialMemory = 24 << 20
	trialFactor = 8
)

// Envoy is the program whose filter a module is to be.
type Envoy interface {
	// Validate has a short-lived Envoy check a bootstrap in JSON, which may take so many bytes of memory. refused is why it does not
	// take it, skipped why it was not asked; "" each if that is not so.
	Validate(ctx context.Context, bootstrap []byte, memory int64) (refused, skipped string, err error)
	// Version is its release, as it says itself.
	Version(ctx context.Context) (string, error)
}

// Plugin is the configuration with which a filter runs a module.
type Plugin struct {
	// Config is envoy.extensions.wasm.v3.PluginConfig in JSON. The code in it does not count; the runtime is V8 where it names none.
	Config json.RawMessage
	// Network is for a network filter; else it is one of HTTP.
	Network bool
}

// Trial is a module that an Envoy is to try: it compiles it, starts it and hands it its configuration, as the one that serves would.
type Trial struct {
	Path   string // of the file
	Size   int64  // in bytes
	Plugin Plugin
}

// refusedError is what an Envoy found when it tried a module.
type refusedError struct{ reason string }

func (e *refusedError) Error() string { return "Envoy does not start it: " + e.reason }

// Run tries the module. The error says why, if Envoy does not take it; skipped says why it was not tried, "" if it was.
func (t Trial) Run(ctx context.Context, envoy Envoy) (skipped string, err error) {
	bootstrap, err := t.bootstrap()
	if err != nil {
		return "", err
	}
	refused, skipped, err := envoy.Validate(ctx, bootstrap, trialMemory+trialFactor*t.Size)
	switch {
	case err != nil:
		return "", fmt.Errorf("try the module in an Envoy: %w", err)
	case refused != "":
		return "", &refusedError{telling(refused)}
	}
	return skipped, nil
}

// telling leaves out what an Envoy says of every module that does not start, unless that is all.
func telling(refused string) string {
	parts := slices.DeleteFunc(strings.Split(refused, "; "), func(part string) bool {
		return strings.HasPrefix(part, "Plugin ") && strings.HasSuffix(part, "failed to load") || strings.Contains(part, "Unable to create Wasm plugin")
	})
	return cmp.Or(strings.Join(parts, "; "), refused)
}

// object is a message in JSON.
type object = map[string]any

// config is the plugin's, of the module at a path, with each key in one spelling. A filter that fails open would hide what is wrong.
func (p Plugin) config(path string) (object, error) {
	config := object{}
	if len(p.Config) > 0 {
		decoder := json.NewDecoder(bytes.NewReader(p.Config))
		decoder.UseNumber() // a number in it may be beyond what a float64 holds
		if err := decoder.Decode(&config); err != nil {
			return nil, fmt.Errorf("the configuration of the plugin: want a PluginConfig in JSON: %w", err)
		}
	}
	vm, ok := either(config, "vmConfig", "vm_config").(object)
	if !ok {
		vm = object{}
	}
	if vm["runtime"] == nil {
		vm["runtime"] = "envoy.wasm.runtime.v8"
	}
	vm["code"] = object{"local": object{"filename": path}}
	config["vmConfig"] = vm
	either(config, "failOpen", "fail_open")
	either(config, "failurePolicy", "failure_policy")
	config["failurePolicy"] = "FAIL_CLOSED"
	return config, nil
}

// either takes a field out of a message, in whichever spelling it has.
func either(message object, camel, snake string) any {
	value := message[camel]
	if value == nil {
		value = message[snake]
	}
	delete(message, camel)
	delete(message, snake)
	return value
}

// bootstrap is what an Envoy is started with: one listener that it does not bind, with the filter in its place.
func (t Trial) bootstrap() ([]byte, error) {
	config, err := t.Plugin.config(t.Path)
	if err != nil {
		return nil, err
	}
	const types = "type.googleapis.com/envoy.extensions.filters."
	filter := func(name, kind string, fields object) object {
		fields["@type"] = types + kind
		return object{"name": name, "typedConfig": fields}
	}
	var filters []object
	if t.Plugin.Network {
		filters = []object{
			filter("wasm", "network.wasm.v3.Wasm", object{"config": config}),
			filter("tcp", "network.tcp_proxy.v3.TcpProxy", object{"statPrefix": "try", "cluster": "none"}),
		}
	} else {
		filters = []object{filter("http", "network.http_connection_manager.v3.HttpConnectionManager", object{
			"statPrefix": "try", "routeConfig": object{"name": "none"},
			"httpFilters": []object{
				filter("wasm", "http.wasm.v3.Wasm", object{"config": config}),
				filter("router", "http.router.v3.Router", object{}),
			},
		})}
	}
	return json.Marshal(object{
		"node": object{"id": "try", "cluster": "try"},
		"staticResources": object{"listeners": []object{{
			"name": "try", "address": object{"socketAddress": object{"address": "127.0.0.1", "portValue": 1}},
			"filterChains": []object{{"filters": filters}},
		}}},
	})
}

// key names a trial, of a module by its hash, and the version of the Envoy: with the same one the outcome is the same.
func (p Plugin) key(sha256hex, version string) (string, error) {
	config, err := p.config(sha256hex)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal([]any{"trial", sha256hex, version, p.Network, config}) // whose maps are in order
	return hashOf(text), err
}

// hashOf is the SHA-256 of bytes, in hexadecimal.
func hashOf(parts ...[]byte) string {
	sum := sha256.Sum256(slices.Concat(parts...))
	return hex.EncodeToString(sum[:])
}
