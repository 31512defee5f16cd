package wasmplugin

import (
	"bytes"
	"encoding/json"
	"fmt"

	extensions "istio.io/api/extensions/v1alpha1"

	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/wasm"
)

// object is a message in JSON.
type object = map[string]any

// policies of a pull, and of a filter whose module fails, by those of the API.
var (
	pullPolicies = map[extensions.PullPolicy]wasm.Policy{extensions.PullPolicy_IfNotPresent: wasm.IfNotPresent, extensions.PullPolicy_Always: wasm.Always}
	failPolicies = map[extensions.FailStrategy]string{
		extensions.FailStrategy_FAIL_CLOSE: "FAIL_CLOSED", extensions.FailStrategy_FAIL_OPEN: "FAIL_OPEN", extensions.FailStrategy_FAIL_RELOAD: "FAIL_RELOAD",
	}
)

// take makes the source of a message that was checked.
func (p *Plugin) take(r *document.Reader, m *extensions.WasmPlugin, config any) *document.Error {
	plugin := object{"name": p.Namespace + "." + p.Name, "rootId": m.GetPluginName(), "failurePolicy": failPolicies[m.GetFailStrategy()]}
	if config != nil {
		text, ferr := jsonOf(r, config)
		if ferr != nil {
			return ferr.In(".pluginConfig")
		}
		plugin["configuration"] = object{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text}
	}
	values, names := object{}, []string{}
	for _, env := range m.GetVmConfig().GetEnv() {
		if env.GetValueFrom() == extensions.EnvValueSource_HOST {
			names = append(names, env.GetName())
		} else {
			values[env.GetName()] = env.GetValue()
		}
	}
	if len(values)+len(names) > 0 {
		plugin["vmConfig"] = object{"environmentVariables": object{"keyValues": values, "hostEnvKeys": names}}
	}
	encoded, err := json.Marshal(plugin)
	if err != nil {
		return document.Errorf("", "%v", err)
	}
	p.Source = wasm.Source{
		URL: m.GetUrl(), SHA256: m.GetSha256(), Policy: pullPolicies[m.GetImagePullPolicy()], Secret: m.GetImagePullSecret(),
		Plugin: wasm.Plugin{Config: encoded, Network: m.GetType() == extensions.PluginType_NETWORK},
	}
	return nil
}

// jsonOf is a tree as JSON text, on one line and with its keys in order, whatever the order in the document.
func jsonOf(r *document.Reader, tree any) (string, *document.Error) {
	value, ferr := jsonable(r, tree)
	if ferr != nil {
		return "", ferr
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // the module may compare
	if err := encoder.Encode(value); err != nil {
		return "", document.Errorf("", "cannot be JSON: %v", err)
	}
	return string(bytes.TrimSpace(out.Bytes())), nil
}

// jsonable has the maps of the YAML parser as JSON has them, and charges all text to the document, which may repeat it by aliases.
func jsonable(r *document.Reader, tree any) (any, *document.Error) {
	switch tree := tree.(type) {
	case map[any]any:
		out := make(object, len(tree))
		for k, v := range tree {
			name, ferr := r.Text(fmt.Sprint(k))
			if ferr != nil {
				return nil, ferr
			}
			if out[name], ferr = jsonable(r, v); ferr != nil {
				return nil, ferr.In("." + document.Abridge(name))
			}
		}
		return out, nil
	case []any:
		out := make([]any, len(tree))
		for i, v := range tree {
			var ferr *document.Error
			if out[i], ferr = jsonable(r, v); ferr != nil {
				return nil, ferr.In(fmt.Sprintf("[%d]", i))
			}
		}
		return out, nil
	case string:
		text, ferr := r.Text(tree)
		return text, ferr
	}
	return tree, nil
}
