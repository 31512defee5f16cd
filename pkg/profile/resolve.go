package profile

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
)

// Layer is settings, and whose word they are: [SourceMesh], "namespace shop", "annotation sidecar.istio.io/logLevel".
type Layer struct {
	Source string
	Spec   *Spec // nil says nothing
}

// Resolve merges layers, the most specific first, over the preset that they choose and the built-in defaults: of each field
// the first one counts that is there. Two kinds of fields are merged: maps (proxy.env, proxy.config) key by key; and the
// exclusions of capture, in which the floor (our own ports, preset, mesh) comes first and the most specific other list is added.
//
// What Validate refuses must not get here: a part that cannot be read is left out.
func Resolve(layers ...Layer) *Settings {
	m := merger{out: &Settings{sources: map[string]string{}}}
	preset, by := PresetIstio, ""
	for _, l := range slices.Backward(layers) {
		if l.Spec != nil && l.Spec.Preset != nil {
			preset, by = *l.Spec.Preset, "preset "+string(*l.Spec.Preset)
		}
	}
	layers = append(slices.Clone(layers), Layer{cmp.Or(by, "preset istio"), preset.defaults()}, Layer{sourceBuiltIn, builtIn()})
	for _, l := range layers {
		if l.Spec == nil {
			continue
		}
		spec, config := lift(l.Spec)
		m.layers = append(m.layers, layer{l.Source, spec, config})
	}
	m.fields(reflect.ValueOf(&m.out.Spec).Elem(), "", func(s *Spec) reflect.Value { return reflect.ValueOf(s).Elem() })
	m.derived()
	m.exclusions()
	m.config()
	m.out.digest = sync.OnceValues(m.out.sum)
	return m.out
}

// Base is the layers that all pods of a namespace have below their own annotations. It is safe for concurrent use.
type Base struct {
	layers []Layer
	alone  func() *Settings // without any above them: most pods say nothing, and settings change once a month
}

// NewBase returns one of layers, the most specific first.
func NewBase(layers ...Layer) *Base {
	return &Base{layers, sync.OnceValue(func() *Settings { return Resolve(layers...) })}
}

// Resolve merges a pod's own layers over the base, as [Resolve] does.
func (b *Base) Resolve(own ...Layer) *Settings {
	if len(own) == 0 {
		return b.alone()
	}
	return Resolve(append(own, b.layers...)...)
}

// layer is a Layer whose proxy.config is read: what has a field of its own is there.
type layer struct {
	source string
	spec   *Spec
	config map[string]any // the rest
}

// merger makes Settings of layers.
type merger struct {
	layers []layer
	out    *Settings
}

// fields merges a struct of this package. find is the same struct of a layer; it is invalid where the layer has none.
func (m *merger) fields(out reflect.Value, path string, find func(*Spec) reflect.Value) {
	for i := range out.NumField() {
		field := out.Type().Field(i)
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		at := strings.TrimPrefix(path+"."+name, ".")
		member := func(s *Spec) reflect.Value {
			if v := find(s); v.IsValid() {
				return v.Field(i)
			}
			return reflect.Value{}
		}
		switch {
		case isOurs(field.Type):
			out.Field(i).Set(reflect.New(field.Type.Elem()))
			m.fields(out.Field(i).Elem(), at, func(s *Spec) reflect.Value {
				if v := member(s); v.IsValid() && !v.IsNil() {
					return v.Elem()
				}
				return reflect.Value{}
			})
		case field.Type == reflect.TypeFor[map[string]string]() && at == envPath:
			m.env(out.Field(i), member)
		case at == configPath: // by config
		default:
			m.leaf(out.Field(i), at, member)
		}
	}
}

const envPath = "proxy.env"

// isOurs reports whether a field is a struct of settings of its own.
func isOurs(t reflect.Type) bool {
	return t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Struct && t.Elem().PkgPath() == reflect.TypeFor[Spec]().PkgPath()
}

// leaf takes the first value that is there; an empty one is there as well.
func (m *merger) leaf(out reflect.Value, path string, find func(*Spec) reflect.Value) {
	for _, l := range m.layers {
		if v := find(l.spec); v.IsValid() && !v.IsNil() {
			out.Set(v)
			m.out.sources[path] = l.source
			return
		}
	}
}

// env merges names; an empty value is one.
func (m *merger) env(out reflect.Value, find func(*Spec) reflect.Value) {
	merged := map[string]string{}
	for _, l := range m.layers {
		v := find(l.spec)
		if !v.IsValid() {
			continue
		}
		for name, value := range v.Interface().(map[string]string) {
			if _, ok := merged[name]; !ok {
				merged[name] = value
				m.out.sources[envPath+"."+name] = l.source
			}
		}
	}
	out.Set(reflect.ValueOf(merged))
}

// derived fills in what by default is another field's value.
func (m *merger) derived() {
	s := m.out
	same(s, &s.Init.Image, "init.image", s.Proxy.Image, "proxy.image")
	same(s, &s.Init.Resources, "init.resources", s.Proxy.Resources, "proxy.resources")
	same(s, &s.DNS.AutoAllocate, "dns.autoAllocate", s.DNS.Capture, "dns.capture")
	same(s, &s.ControlPlane.CAAddress, "controlPlane.caAddress", s.ControlPlane.DiscoveryAddress, "controlPlane.discoveryAddress")
	same(s, &s.ControlPlane.MeshID, "controlPlane.meshID", s.ControlPlane.TrustDomain, "controlPlane.trustDomain")
}

// same sets a field that nobody has set to another's value.
func same[T any](s *Settings, field **T, path string, other *T, otherPath string) {
	if *field == nil && other != nil {
		*field = other
		s.sources[path] = s.sources[otherPath] + ", as " + otherPath
	}
}

// exclusions unites the lists of what is not captured.
func (m *merger) exclusions() {
	c := m.out.Capture
	own := []intstr.IntOrString{intstr.FromInt32(contract.StatsPort), intstr.FromInt32(contract.ReadyPort)}
	if port := *m.out.Proxy.StatusPort; port != 0 {
		own = append(own, intstr.FromInt32(port))
	}
	const path = "capture."
	c.ExcludeInboundPorts = union(m, path+"excludeInboundPorts", own, func(c *Capture) []intstr.IntOrString { return c.ExcludeInboundPorts })
	c.ExcludeOutboundPorts = union(m, path+"excludeOutboundPorts", nil, func(c *Capture) []intstr.IntOrString { return c.ExcludeOutboundPorts })
	c.ExcludeOutboundIPRanges = union(m, path+"excludeOutboundIPRanges", nil, func(c *Capture) []string { return c.ExcludeOutboundIPRanges })
}

// union is own and the floor's lists, built-in first, and the most specific list above the floor, without doubles.
func union[T comparable](m *merger, path string, own []T, list func(*Capture) []T) []T {
	out := []T{}
	add := func(more []T) (added bool) {
		for _, v := range more {
			if !slices.Contains(out, v) {
				out, added = append(out, v), true
			}
		}
		return added
	}
	var sources []string
	note := func(l layer) {
		if l.spec.Capture != nil && add(list(l.spec.Capture)) {
			sources = append([]string{l.source}, sources...)
		}
	}
	if add(own) {
		sources = []string{sourceBuiltIn}
	}
	floor := slices.IndexFunc(m.layers, func(l layer) bool { return l.source == SourceMesh })
	if floor < 0 { // no mesh: the preset and the built-in defaults are the last two
		floor = len(m.layers) - 2
	}
	for _, l := range slices.Backward(m.layers[floor:]) {
		note(l)
	}
	for _, l := range m.layers[:floor] {
		if l.spec.Capture != nil && list(l.spec.Capture) != nil {
			note(l)
			break
		}
	}
	m.out.sources[path] = cmp.Or(strings.Join(sources, ", "), sourceBuiltIn)
	return out
}

// config writes proxy.config: the rest of each layer's, key by key, and the typed fields.
func (m *merger) config() {
	merged := map[string]any{}
	for _, l := range m.layers {
		for key, value := range l.config {
			if _, ok := merged[key]; !ok {
				merged[key] = value
				m.out.sources[configPath+"."+key] = l.source
			}
		}
	}
	maps.Copy(merged, typedConfig(m.out))
	m.out.Proxy.Config = new(marshalConfig(merged))
}
