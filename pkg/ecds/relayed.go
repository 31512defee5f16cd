package ecds

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/wasm/wasmfilter"
	"understudy.mesh/pkg/xds"
)

// extensionType is the type URL of what Envoy discovers by name.
const extensionType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// Relayed makes of the configurations of Wasm filters that istiod sends those that this pod's Envoy gets: with the module out of the store,
// or with what stands in its place until it is there. It is for one goroutine, but for Changed and what people see of it. A nil one leaves
// everything as it is.
type Relayed struct {
	x       *Extensions // nil: Wasm is off
	changed chan struct{}
	wanted  map[string]envoyfilter.Extension // by name
	given   map[string]xds.Resource          // what Envoy was given last of each
}

// NewRelayed is as c says, but for Changed. off has none of the filters run: what is behind them gets everything.
func NewRelayed(c Config, off bool) *Relayed {
	r := &Relayed{changed: make(chan struct{}, 1), wanted: map[string]envoyfilter.Extension{}, given: map[string]xds.Resource{}}
	c.Changed = r.change
	if !off {
		r.x = New(c)
	}
	return r
}

func (r *Relayed) change() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// Changed holds a token when something may be Due.
func (r *Relayed) Changed() <-chan struct{} {
	if r == nil {
		return nil
	}
	return r.changed
}

// Take puts into a response of istiod what Envoy gets in the place of each configuration that wants a module; the others stay as they are.
// Nothing of such a one goes on otherwise: it may have a pull secret in it.
func (r *Relayed) Take(resp *xds.Response) {
	if r == nil || resp.Type != extensionType {
		return
	}
	concerned := false
	for _, name := range resp.Removed {
		concerned = r.drop(name) || concerned
	}
	for _, m := range resp.Resources {
		if e, is := read(m); is {
			r.wanted[m.Name], concerned = e, true
		} else {
			concerned = r.drop(m.Name) || concerned
		}
	}
	if !concerned {
		return
	}
	now := r.now()
	for i, m := range resp.Resources {
		if _, is := r.wanted[m.Name]; is {
			resp.Resources[i] = r.give(now, m.Name)
		}
	}
}

// give is what Envoy is to have of one that is wanted. What can be no filter leaves what it was given before; without that it refuses all
// traffic, as what it was to guard is not known.
func (r *Relayed) give(now map[string]xds.Resource, name string) xds.Resource {
	m, is := now[name]
	if !is {
		m, is = r.given[name]
	}
	if !is {
		network := strings.Contains(r.wanted[name].Config.GetTypeUrl(), ".network.")
		if v, err := placeholder(name, network, r.x == nil); err == nil { // which serializes
			m = v.Resource
		}
	}
	r.given[name] = m
	return m
}

// drop says whether one was wanted that is not any more.
func (r *Relayed) drop(name string) (was bool) {
	_, was = r.wanted[name]
	delete(r.wanted, name)
	delete(r.given, name)
	if r.x != nil {
		r.x.forget(name)
	}
	return was
}

// read is the configuration of a resource, if it is one of a Wasm filter that wants a module.
func read(m xds.Resource) (e envoyfilter.Extension, is bool) {
	c := &corev3.TypedExtensionConfig{}
	if proto.Unmarshal(m.Body, c) != nil {
		return e, false // Envoy's to refuse
	}
	f, err := wasmfilter.Of(c.GetTypedConfig())
	return envoyfilter.Extension{Name: m.Name, Document: documentOf(m.Name), Config: c.GetTypedConfig()}, f != nil || err != nil
}

// documentOf is kind, namespace and name of the document whose filter has a name, as far as the name says.
func documentOf(name string) string {
	for prefix, kind := range map[string]string{
		"extensions.istio.io/wasmplugin/": "WasmPlugin", "extensions.istio.io/trafficextension/": "TrafficExtension",
		asmfilter.FilterPrefix: asmfilter.Kind,
	} {
		if rest, is := strings.CutPrefix(name, prefix); is {
			namespace, of, _ := strings.Cut(rest, ".") // a namespace has none
			return kind + " " + namespace + "/" + of
		}
	}
	return "EnvoyFilter " + name
}

// now is what Envoy is to have of each.
func (r *Relayed) now() map[string]xds.Resource {
	all := make([]envoyfilter.Extension, 0, len(r.wanted))
	for _, name := range slices.Sorted(maps.Keys(r.wanted)) {
		all = append(all, r.wanted[name])
	}
	out := make(map[string]xds.Resource, len(all))
	if r.x == nil {
		return out
	}
	for _, m := range r.x.Resources(all) {
		out[m.Name] = m
	}
	return out
}

// Due is what Envoy is to get besides what istiod says, nil: nothing. It is one resource: of several a bad one would hide the others.
func (r *Relayed) Due() *xds.Response {
	if r == nil || len(r.wanted) == 0 {
		return nil
	}
	now := r.now()
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if m := now[name]; !slices.Equal(m.Body, r.given[name].Body) {
			r.give(now, name)
			return &xds.Response{Type: extensionType, Resources: []xds.Resource{m}}
		}
	}
	return nil
}

// Answered takes in that Envoy has answered for all that it was given: why it refuses some of it, by name. Something may be Due then.
func (r *Relayed) Answered(refused map[string]string) {
	if r != nil && r.x != nil && len(r.wanted) > 0 {
		r.x.Answered(refused)
	}
}

// Export is what istiod wants and what of that is in force, for a successor, which may find no istiod.
func (r *Relayed) Export() []byte {
	if r == nil || r.x == nil {
		return nil
	}
	return r.x.export(true)
}

// Import takes over what Export gave, here or in another release, and the resources that the Envoy of the generation before runs: this one's
// gets them, and keeps each until the module that is wanted is there. It comes before Take.
func (r *Relayed) Import(data []byte, running []xds.Resource) {
	if r == nil || r.x == nil {
		return
	}
	for _, i := range r.x.inherit(data, running) {
		config := &anypb.Any{}
		if len(i.Wanted) == 0 || proto.Unmarshal(i.Wanted, config) != nil {
			continue // istiod says it
		}
		r.wanted[i.Name] = envoyfilter.Extension{Name: i.Name, Document: documentOf(i.Name), Config: config}
	}
	r.x.runsTheirs()
	for _, m := range running {
		_, module := read(m)
		if _, wanted := r.wanted[m.Name]; wanted || module {
			r.given[m.Name] = m
		}
	}
	r.change()
}

// Served says that this generation serves from now on.
func (r *Relayed) Served() {
	if r != nil && r.x != nil {
		r.x.Served()
	}
}

// Close ends all that is under way.
func (r *Relayed) Close() {
	if r != nil && r.x != nil {
		r.x.Close()
	}
}

// Report says what became of each filter, by name.
func (r *Relayed) Report() []Report {
	if r == nil || r.x == nil {
		return nil
	}
	return r.x.Report()
}

// Pages are the handlers, by path.
func (r *Relayed) Pages() map[string]http.Handler {
	if r == nil || r.x == nil {
		return map[string]http.Handler{}
	}
	return r.x.Pages()
}

// Samples are the metrics.
func (r *Relayed) Samples() []status.Sample {
	if r == nil || r.x == nil {
		return nil
	}
	return r.x.Samples()
}
