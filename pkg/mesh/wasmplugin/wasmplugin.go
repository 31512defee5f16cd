// Package wasmplugin owns the reading of WasmPlugin (extensions.istio.io/v1alpha1): which module one wants, and with which configuration
// an Envoy is to run it.
package wasmplugin

import (
	"errors"
	"fmt"
	"math"
	"strings"

	extensions "istio.io/api/extensions/v1alpha1"

	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/wasm"
)

const (
	kind       = "WasmPlugin"
	apiVersion = "extensions.istio.io/v1alpha1"
	// maxName bounds pluginName, as the CRD does.
	maxName = 256
)

// Plugin is one WasmPlugin.
type Plugin struct {
	Namespace, Name string
	Source          wasm.Source
}

// Read reads every WasmPlugin of a file of YAML or JSON, in which documents of other kinds are passed over. One without a namespace is of
// the namespace that is given. The error names each document that is bad, its field and the reason; then there are no plugins.
func Read(data []byte, namespace string) ([]Plugin, error) {
	var plugins []Plugin
	var errs []error
	reader := document.NewReader()
	chunks := document.Split(data)
	stream := document.NewStream(chunks)
	for i, c := range chunks {
		tree, err := stream.Next(c)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", i+1, err))
			continue
		}
		fields, _ := tree.(map[any]any)
		if fields["kind"] != kind {
			continue
		}
		reader.Begin(c.Text)
		p, ferr := read(reader, fields, namespace)
		if ferr != nil {
			errs = append(errs, fmt.Errorf("document %d, %s %q: %w", i+1, kind, document.Abridge(p.Name), ferr))
			continue
		}
		plugins = append(plugins, p)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return plugins, nil
}

func read(r *document.Reader, fields map[any]any, namespace string) (p Plugin, ferr *document.Error) {
	meta, ok := fields["metadata"].(map[any]any)
	if !ok {
		return p, document.Errorf("metadata", "should be an object with a name")
	}
	p.Namespace = namespace
	if v := meta["name"]; v != nil {
		if p.Name, ferr = r.Text(v); ferr != nil {
			return p, ferr.In("metadata.name")
		}
	}
	if v := meta["namespace"]; v != nil {
		if p.Namespace, ferr = r.Text(v); ferr != nil {
			return p, ferr.In("metadata.namespace")
		}
	}
	for _, name := range document.KeyNames(fields) {
		switch name {
		case "apiVersion", "kind", "metadata", "spec", "status":
		default:
			return p, document.Errorf(name, "unknown field; known are apiVersion, kind, metadata, spec, status")
		}
	}
	spec, ok := fields["spec"].(map[any]any)
	switch {
	case fields["apiVersion"] != apiVersion:
		return p, document.Errorf("apiVersion", "is %q, should be %s", document.Abridge(fmt.Sprint(fields["apiVersion"])), apiVersion)
	case p.Name == "":
		return p, document.Errorf("metadata.name", "is missing")
	case !ok:
		return p, document.Errorf("spec", "should be an object with a url")
	}
	return p, p.readSpec(r, spec).In("spec")
}

// readSpec reads what the message has; two of its fields have types that are read here: integers of a Struct would change beyond 2^53.
func (p *Plugin) readSpec(r *document.Reader, spec map[any]any) *document.Error {
	rest := map[any]any{}
	var config any
	for k, v := range spec {
		switch k {
		case "pluginConfig", "plugin_config":
			if config != nil {
				return document.Errorf(".plugin_config", "is the same field as pluginConfig, which is there too; remove one of the two")
			}
			config = v
		case "priority":
			if n, ok := v.(int); !ok || n < math.MinInt32 || n > math.MaxInt32 {
				return document.Errorf(".priority", "is %s, should be a whole number", document.Abridge(fmt.Sprint(v)))
			}
		default:
			rest[k] = v
		}
	}
	if _, ok := config.(map[any]any); config != nil && !ok {
		return document.Errorf(".pluginConfig", "should be an object")
	}
	m := &extensions.WasmPlugin{}
	if ferr := r.Fill(m.ProtoReflect(), rest); ferr != nil {
		return ferr
	}
	if ferr := check(m); ferr != nil {
		return ferr
	}
	return p.take(r, m, config)
}

// check says what of a message is wrong, or is not to be had here and must not be left out in silence.
func check(m *extensions.WasmPlugin) *document.Error {
	switch digest := digestOf(m.GetUrl()); {
	case m.GetUrl() == "":
		return document.Errorf(".url", "is missing")
	case digest != "" && m.GetSha256() != "" && digest != m.GetSha256():
		return document.Errorf(".sha256", "is another than the one in url")
	case m.GetVerificationKey() != "":
		return document.Errorf(".verificationKey", "signatures are not verified here, and a module that wants it is not run without: give sha256 instead")
	case m.GetTargetRef() != nil:
		return document.Errorf(".targetRef", "is not for a sidecar; use selector")
	case len(m.GetTargetRefs()) > 0:
		return document.Errorf(".targetRefs", "is not for a sidecar; use selector")
	case len(m.GetPluginName()) > maxName:
		return document.Errorf(".pluginName", "has %d bytes, should have at most %d", len(m.GetPluginName()), maxName)
	}
	for i, match := range m.GetMatch() {
		for j, port := range match.GetPorts() {
			if n := port.GetNumber(); n == 0 || n > math.MaxUint16 {
				return document.Errorf(fmt.Sprintf(".match[%d].ports[%d].number", i, j), "is %d, should be a port from 1 to 65535", n)
			}
		}
	}
	seen := map[string]bool{}
	for i, env := range m.GetVmConfig().GetEnv() {
		at := fmt.Sprintf(".vmConfig.env[%d]", i)
		switch name := env.GetName(); {
		case name == "":
			return document.Errorf(at+".name", "is missing")
		case seen[name]:
			return document.Errorf(at+".name", "%s is there twice", document.Abridge(name))
		case strings.HasPrefix(name, "ISTIO_META_"):
			return document.Errorf(at+".name", "%s begins with ISTIO_META_, which is for the agent's use", document.Abridge(name))
		case env.GetValueFrom() == extensions.EnvValueSource_HOST && env.GetValue() != "":
			return document.Errorf(at+".value", "is not used with valueFrom HOST; remove one of the two")
		}
		seen[env.GetName()] = true
	}
	return nil
}

// digestOf is the SHA-256 in the name of an image, "" without one.
func digestOf(url string) string {
	_, digest, _ := strings.Cut(url, "@sha256:")
	return digest
}
