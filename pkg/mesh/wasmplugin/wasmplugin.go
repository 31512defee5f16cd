// Package wasmplugin owns the reading of WasmPlugin (extensions.istio.io/v1alpha1): which module one wants, with which configuration an
// Envoy is to run it, and before which traffic.
package wasmplugin

import (
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	extensions "istio.io/api/extensions/v1alpha1"
	typev1beta1 "istio.io/api/type/v1beta1"

	"understudy.mesh/pkg/envoyfilter"
	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/pkg/wasm"
	"understudy.mesh/pkg/wasm/wasmfilter"
)

const (
	// Kind is that of the document.
	Kind = "WasmPlugin"
	// APIVersion is the one that there is.
	APIVersion = "extensions.istio.io/v1alpha1"
	// PollAnnotation says how often a tag is looked up again, which else happens once.
	PollAnnotation = "understudy.mesh/poll"
	// minPoll bounds that: every pod of a mesh asks.
	minPoll = 10 * time.Second
	// maxName bounds pluginName, as the CRD does.
	maxName = 256
	// filterPrefix is before namespace.name in the name of the filter, as istiod has it: EnvoyFilters anchor at it.
	filterPrefix = "extensions.istio.io/wasmplugin/"
)

// Plugin is one WasmPlugin.
type Plugin struct {
	Namespace, Name string
	Source          wasm.Source

	poll    string // of its annotation
	message *extensions.WasmPlugin
	config  *anypb.Any // of the filter
}

// Read reads every WasmPlugin of a file of YAML or JSON, in which documents of other kinds are passed over. One without a namespace is of
// the namespace that is given. The error names each document that is bad, its field and the reason; then there are no plugins.
func Read(data []byte, namespace string) ([]Plugin, error) {
	var plugins []Plugin
	err := document.Each(data, Kind, APIVersion, namespace, func(r *document.Reader, m document.Metadata, spec any) (ferr *document.Error) {
		p := Plugin{Namespace: m.Namespace, Name: m.Name}
		if p.poll, ferr = r.Annotation(m.Annotations, PollAnnotation); ferr != nil {
			return ferr
		}
		if ferr = p.read(r, spec); ferr == nil {
			plugins = append(plugins, p)
		}
		return ferr
	})
	if err != nil {
		return nil, err
	}
	return plugins, nil
}

// New reads a document of which all but annotation and spec is known, for the proxies that it selects. poll is its PollAnnotation, ""
// without one. Remarks are what of a good document has no effect.
func New(r *document.Reader, meta envoyfilter.Meta, poll string, spec any) (f *envoyfilter.Filter, remarks []*document.Error, ferr *document.Error) {
	p := Plugin{Namespace: meta.Namespace, Name: meta.Name, poll: poll}
	if ferr := p.read(r, spec); ferr != nil {
		return nil, nil, ferr
	}
	if poll != "" && p.Source.SHA256 != "" {
		remarks = append(remarks, document.Errorf("metadata.annotations["+PollAnnotation+"]", "has no effect beside a sha256: what it names never changes"))
	}
	meta.Kind = Kind
	return envoyfilter.NewPlugin(meta, p.filter()), remarks, nil
}

// Denial is a filter in the place of a document that is bad, which refuses the traffic that the plugin would guard. It is nil where that
// may pass without it, and where it is not said whose traffic that is. read is what of the document could be read.
func Denial(r *document.Reader, meta envoyfilter.Meta, spec any) (f *envoyfilter.Filter, read proto.Message, err error) {
	fields, _ := spec.(map[any]any)
	m := &extensions.WasmPlugin{}
	for k, v := range fields {
		if k == "pluginConfig" || k == "plugin_config" {
			continue
		}
		one := &extensions.WasmPlugin{}
		if r.Fill(one.ProtoReflect(), map[any]any{k: v}) == nil {
			proto.Merge(m, one)
		}
	}
	_, selects := fields["selector"]
	if fields == nil || selects && m.GetSelector() == nil || m.GetFailStrategy() == extensions.FailStrategy_FAIL_OPEN || m.GetTargetRef() != nil || len(m.GetTargetRefs()) > 0 {
		return nil, nil, nil
	}
	if checkMatch(m.GetMatch()) != nil {
		m.Match = nil
	}
	deny, err := envoyfilter.Placeholder(m.GetType() == extensions.PluginType_NETWORK, false)
	if err != nil {
		return nil, nil, err
	}
	meta.Kind = Kind
	p := Plugin{Namespace: meta.Namespace, Name: meta.Name, message: m, config: deny}
	return envoyfilter.NewPlugin(meta, p.filter()), m, nil
}

// filter is the place of the plugin, and what is there.
func (p *Plugin) filter() envoyfilter.Plugin {
	m := p.message
	out := envoyfilter.Plugin{
		Selector: m.GetSelector().GetMatchLabels(), Phase: phase(m.GetPhase()), Priority: envoyfilter.LeastPriority, Match: matches(m.GetMatch()),
		Network: m.GetType() == extensions.PluginType_NETWORK, FilterName: filterPrefix + p.Namespace + "." + p.Name, Config: p.config,
	}
	if m.GetPriority() != nil {
		out.Priority = m.GetPriority().GetValue()
	}
	return out
}

// phase is the place of a phase among them: who names none comes last, just before what the proxy does by itself.
func phase(p extensions.PluginPhase) int {
	if p == extensions.PluginPhase_UNSPECIFIED_PHASE {
		return math.MaxInt
	}
	return int(p)
}

func matches(selectors []*extensions.WasmPlugin_TrafficSelector) []envoyfilter.Match {
	var out []envoyfilter.Match
	for _, s := range selectors {
		m := envoyfilter.Match{
			Client: s.GetMode() != typev1beta1.WorkloadMode_SERVER,
			Server: s.GetMode() != typev1beta1.WorkloadMode_CLIENT,
		}
		for _, port := range s.GetPorts() {
			m.Ports = append(m.Ports, uint16(port.GetNumber()))
		}
		out = append(out, m)
	}
	return out
}

// read reads annotation and spec.
func (p *Plugin) read(r *document.Reader, spec any) *document.Error {
	fields, ok := spec.(map[any]any)
	if !ok {
		return document.Errorf("spec", "should be an object with a url")
	}
	if p.poll != "" {
		if every, err := time.ParseDuration(p.poll); err != nil || every < minPoll {
			return document.Errorf("metadata.annotations["+PollAnnotation+"]", "is %q, should be a duration such as 5m, of %s at least", document.Abridge(p.poll), minPoll)
		}
	}
	return p.readSpec(r, fields).In("spec")
}

// readSpec reads what the message has; two of its fields have types that are read here: integers of a Struct would change beyond 2^53.
func (p *Plugin) readSpec(r *document.Reader, spec map[any]any) *document.Error {
	rest := map[any]any{}
	var given any
	var priority *int
	for k, v := range spec {
		switch k {
		case "pluginConfig", "plugin_config":
			if given != nil {
				return document.Errorf(".plugin_config", "is the same field as pluginConfig, which is there too; remove one of the two")
			}
			given = v
		case "priority":
			if n, ok := v.(int); !ok || n < math.MinInt32 || n > math.MaxInt32 {
				return document.Errorf(".priority", "is %s, should be a whole number", document.Abridge(fmt.Sprint(v)))
			} else {
				priority = &n
			}
		default:
			rest[k] = v
		}
	}
	tree, ok := given.(map[any]any)
	if given != nil && !ok {
		return document.Errorf(".pluginConfig", "should be an object")
	}
	m := &extensions.WasmPlugin{}
	if priority != nil {
		m.Priority = wrapperspb.Int32(int32(*priority))
	}
	if ferr := r.Fill(m.ProtoReflect(), rest); ferr != nil {
		return ferr
	}
	if ferr := check(m); ferr != nil {
		return ferr
	}
	text := ""
	if len(tree) > 0 { // an empty one is none for istiod
		var ferr *document.Error
		if text, ferr = jsonOf(r, tree); ferr != nil {
			return ferr.In(".pluginConfig")
		}
	}
	return p.take(m, text)
}

// take makes filter and source of a message that was checked, with the configuration of the module in text.
func (p *Plugin) take(m *extensions.WasmPlugin, text string) *document.Error {
	var err error
	if p.config, err = config(p.Namespace+"."+p.Name, p.poll, text, m); err != nil {
		return document.Errorf("", "%v", err)
	}
	f, err := wasmfilter.Of(p.config)
	if err != nil {
		return document.Errorf("", "%v", err)
	}
	p.message, p.Source = m, f.Source
	return nil
}

// check says what of a message is wrong, or is not to be had here and must not be left out in silence.
func check(m *extensions.WasmPlugin) *document.Error {
	if ferr := checkURL(m.GetUrl()); ferr != nil {
		return ferr
	}
	switch digest := digestOf(m.GetUrl()); {
	case m.GetSha256() != "" && !hexSHA256.MatchString(m.GetSha256()):
		return document.Errorf(".sha256", "is %q, should be 64 hexadecimal digits", document.Abridge(m.GetSha256()))
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
	if ferr := checkMatch(m.GetMatch()); ferr != nil {
		return ferr
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

func checkMatch(selectors []*extensions.WasmPlugin_TrafficSelector) *document.Error {
	for i, match := range selectors {
		for j, port := range match.GetPorts() {
			if n := port.GetNumber(); n == 0 || n > math.MaxUint16 {
				return document.Errorf(fmt.Sprintf(".match[%d].ports[%d].number", i, j), "is %d, should be a port from 1 to 65535", n)
			}
		}
	}
	return nil
}

var hexSHA256 = regexp.MustCompile("^[0-9a-f]{64}$")

// schemes are those of a url; without one it is the name of an image.
var schemes = []string{"oci", "http", "https", "file"}

func checkURL(url string) *document.Error {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case url == "":
		return document.Errorf(".url", "is missing")
	case !ok:
		return nil
	case !slices.Contains(schemes, scheme):
		return document.Errorf(".url", "has the scheme %q, should be one of %s", document.Abridge(scheme), strings.Join(schemes, ", "))
	case scheme == "file" && !filepath.IsAbs(rest):
		return document.Errorf(".url", "is %q, should have an absolute path: file:///var/local/lib/wasm-filters/example-filter.wasm", document.Abridge(url))
	}
	return nil
}

// digestOf is the SHA-256 in the name of an image, "" without one.
func digestOf(url string) string {
	_, digest, _ := strings.Cut(url, "@sha256:")
	return digest
}
