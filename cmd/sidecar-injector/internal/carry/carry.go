// Package carry owns the way from the settings of Istio's injector to SidecarProfiles.
package carry

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/profile"
)

// Outcome is what was made of Istio's settings.
type Outcome struct {
	mesh       map[string]any            // the spec of the mesh's profile
	namespaces map[string]map[string]any // of the others'
	root       string                    // Istio's root namespace, whose ProxyConfig is the mesh's
	lost       []string
	found      int
}

// object is what is read of an object of Kubernetes.
type object struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"metadata"`
	Data  map[string]string `json:"data"`
	Spec  map[string]any    `json:"spec"`
	Items []json.RawMessage `json:"items"`
}

// New returns an outcome of nothing. root is Istio's root namespace.
func New(root string) *Outcome {
	return &Outcome{mesh: map[string]any{}, namespaces: map[string]map[string]any{}, root: root}
}

// Add carries what one object says, as JSON: the ConfigMaps istio and istio-sidecar-injector (also of a revision), and
// ProxyConfigs, also in a List. Others say nothing of the injector.
func (o *Outcome) Add(text []byte) error {
	var in object
	if err := json.Unmarshal(text, &in); err != nil {
		return fmt.Errorf("want an object of Kubernetes: %w", err)
	}
	name := in.Metadata.Name
	switch {
	case strings.HasSuffix(in.Kind, "List"):
		for i, item := range in.Items {
			if err := o.Add(item); err != nil {
				return fmt.Errorf("items[%d]: %w", i, err)
			}
		}
	case in.Kind == "ConfigMap" && (name == "istio" || strings.HasPrefix(name, "istio-")) && in.Data["mesh"] != "":
		return o.tree(name, "mesh", in.Data["mesh"], o.meshConfig)
	case in.Kind == "ConfigMap" && strings.HasPrefix(name, "istio-sidecar-injector"):
		if err := o.tree(name, "values", in.Data["values"], o.values); err != nil {
			return err
		}
		return o.tree(name, "config", in.Data["config"], o.injector)
	case in.Kind == "ProxyConfig":
		o.found++
		o.proxyConfig(in)
	}
	return nil
}

// tree reads a key of a ConfigMap and carries it.
func (o *Outcome) tree(name, key, text string, carry func(source string, t tree)) error {
	t := tree{}
	if err := yaml.UnmarshalStrict([]byte(text), &t); err != nil {
		return fmt.Errorf("ConfigMap %s, key %s: %w", name, key, profile.YAMLError(err))
	}
	o.found++
	carry("ConfigMap "+name+", "+key, t)
	return nil
}

// lose notes what cannot be carried.
func (o *Outcome) lose(source, path string, value any, instead string) {
	text, err := json.Marshal(value)
	if err != nil {
		text = fmt.Append(nil, value)
	}
	o.lost = append(o.lost, fmt.Sprintf("%s: %s: %s: %s", source, path, text, instead))
}

// Found is how many objects said something.
func (o *Outcome) Found() int { return o.found }

// Profiles are the SidecarProfiles as YAML, the mesh's first, for the injector's namespace own; and what could not be carried.
func (o *Outcome) Profiles(own string) (text []byte, lost []string, err error) {
	specs := map[string]map[string]any{own: o.mesh}
	maps.Copy(specs, o.namespaces)
	order := append([]string{own}, slices.Sorted(maps.Keys(o.namespaces))...)
	lost = o.lost
	for i, namespace := range order {
		document, err := yaml.Marshal(map[string]any{
			"apiVersion": profile.Group + "/" + profile.Version, "kind": profile.Kind,
			"metadata": map[string]any{"name": profile.Name, "namespace": namespace}, "spec": specs[namespace],
		})
		if err != nil {
			return nil, nil, fmt.Errorf("write the profile of %s: %w", namespace, err)
		}
		read, err := profile.Decode(document)
		if err == nil {
			err = read.Validate(own)
		}
		if err != nil { // Istio is not as strict; its users have to know
			for line := range strings.SplitSeq(err.Error(), "\n") {
				lost = append(lost, "namespace "+namespace+": "+line)
			}
		}
		if i > 0 {
			text = append(text, "---\n"...)
		}
		text = append(text, document...)
	}
	return text, lost, nil
}
