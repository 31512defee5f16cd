// Package envoyfilter owns what Istio's EnvoyFilters say: their validation, whom they are for and in which order, and
// the patches that they make to Envoy's listeners. It is pure: it reads no file and keeps no state.
//
// A Filter is one valid document. A Set is those of them that are for one proxy, in Istio's order, compiled once and
// then applied to each listener. Everything follows istiod (pilot/pkg/networking/core/envoyfilter), so that a document
// means here what it means there.
package envoyfilter

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// maxProxyVersion bounds a proxyVersion as istiod does, which lets a longer one match nothing.
const maxProxyVersion = 1024

// Meta is the metadata of a document.
type Meta struct {
	Kind            string // of what became an EnvoyFilter or stands beside them; "" of an EnvoyFilter
	Namespace, Name string
	Created         int64  // creationTimestamp, Unix seconds; 0 when absent, as in files
	Sum             uint64 // of all that the document says: two with one Sum are the same
}

// Filter is one valid EnvoyFilter. It is immutable.
type Filter struct {
	Meta
	priority int32
	selector map[string]string
	targeted bool // it has targetRefs, which are for gateways and waypoints
	patches  []*patch
	plugin   *Plugin // nil of an EnvoyFilter
}

// Title is kind and name of a document, by which it differs from all others.
func (m Meta) Title() string { return cmp.Or(m.Kind, "EnvoyFilter") + " " + m.Namespace + "/" + m.Name }

// patch is one of a document's configPatches.
type patch struct {
	applyTo   networking.EnvoyFilter_ApplyTo
	operation networking.EnvoyFilter_Patch_Operation
	context   networking.EnvoyFilter_PatchContext
	version   *regexp.Regexp // nil: any
	metadata  map[string]string
	match     *networking.EnvoyFilter_ListenerMatch // nil: every listener
	value     proto.Message                         // *listenerv3.Filter, *hcmv3.HttpFilter or *corev3.TypedExtensionConfig; nil to REMOVE
	ignored   string                                // why it has no effect with files; "" if it has one
	plugin    *Plugin                               // whose place is not a match's but its own; nil of an EnvoyFilter
}

// Problem is what is wrong with a document, or has no effect: the path of the field below spec, and the reason.
type Problem struct{ Field, Reason string }

func (p *Problem) Error() string { return p.Field + ": " + p.Reason }

func problem(field, format string, args ...any) *Problem {
	return &Problem{field, fmt.Sprintf(format, args...)}
}

// in puts a place before the field; a nil problem stays nil.
func (p *Problem) in(prefix string) *Problem {
	if p == nil {
		return nil
	}
	return &Problem{prefix + p.Field, p.Reason}
}

// New validates a document by the rules of istiod's webhook, and more strictly: a value with a field that Envoy's API
// does not have is an error here. remarks are what of a good document has no effect. spec is not kept.
func New(m Meta, spec *networking.EnvoyFilter) (f *Filter, remarks []*Problem, err *Problem) {
	f = &Filter{Meta: m, priority: spec.GetPriority(), selector: spec.GetWorkloadSelector().GetLabels(), targeted: len(spec.GetTargetRefs()) > 0}
	if f.targeted && spec.GetWorkloadSelector() != nil {
		return nil, nil, problem(".targetRefs", "only one of targetRefs and workloadSelector can be set")
	}
	if f.targeted {
		remarks = append(remarks, problem(".targetRefs", "is for gateways and waypoints: nothing of it applies to a sidecar"))
	}
	if spec.GetWorkloadSelector() != nil && len(f.selector) == 0 {
		remarks = append(remarks, problem(".workloadSelector", "has no labels, so it selects every workload of the namespace"))
	}
	for i, c := range spec.GetConfigPatches() {
		at := fmt.Sprintf(".configPatches[%d]", i)
		p, err := newPatch(c)
		if err != nil {
			return nil, nil, err.in(at)
		}
		if p.ignored != "" {
			remarks = append(remarks, problem(at+".applyTo", "%s", p.ignored))
		}
		for _, r := range noEffect(c) {
			remarks = append(remarks, r.in(at))
		}
		f.patches = append(f.patches, p)
	}
	return f, remarks, nil
}

func newPatch(c *networking.EnvoyFilter_EnvoyConfigObjectPatch) (*patch, *Problem) {
	p := &patch{applyTo: c.GetApplyTo(), operation: c.GetPatch().GetOperation(), context: c.GetMatch().GetContext()}
	switch {
	case p.applyTo == networking.EnvoyFilter_INVALID:
		return nil, problem(".applyTo", "is missing, should be HTTP_FILTER, NETWORK_FILTER or EXTENSION_CONFIG")
	case c.GetPatch() == nil:
		return nil, problem(".patch", "is missing")
	case p.operation == networking.EnvoyFilter_Patch_INVALID:
		return nil, problem(".patch.operation", "is missing, should be ADD, REMOVE, MERGE, REPLACE, INSERT_BEFORE, INSERT_AFTER or INSERT_FIRST")
	case p.operation != networking.EnvoyFilter_Patch_REMOVE && c.GetPatch().GetValue() == nil:
		return nil, problem(".patch.value", "is missing; only REMOVE needs none")
	}
	if err := p.proxy(c.GetMatch().GetProxy()); err != nil {
		return nil, err.in(".match.proxy")
	}
	if p.ignored = notWithFiles(p.applyTo); p.ignored != "" {
		return p, nil
	}
	if err := p.object(c.GetMatch()); err != nil {
		return nil, err.in(".match")
	}
	if p.operation == networking.EnvoyFilter_Patch_REMOVE {
		return p, nil
	}
	var err *Problem
	if p.value, err = newValue(p.applyTo, c.GetPatch().GetValue()); err == nil {
		err = p.complete()
	}
	return p, err.in(".patch.value")
}

// notWithFiles says which objects are not patched here: the routes and clusters of files are the agent's own form.
func notWithFiles(a networking.EnvoyFilter_ApplyTo) string {
	switch a {
	case networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_NETWORK_FILTER, networking.EnvoyFilter_EXTENSION_CONFIG:
		return ""
	}
	return a.String() + " is not patched with files, but under istiod, which does it; this patch is left out"
}

// proxy compiles match.proxy.
func (p *patch) proxy(m *networking.EnvoyFilter_ProxyMatch) *Problem {
	p.metadata = m.GetMetadata()
	text := m.GetProxyVersion()
	if text == "" {
		return nil
	}
	if len(text) > maxProxyVersion {
		return problem(".proxyVersion", "has %d characters, %d are enough for a version", len(text), maxProxyVersion)
	}
	var err error
	if p.version, err = regexp.Compile(text); err != nil {
		return problem(".proxyVersion", "is no regular expression: %v", err)
	}
	return nil
}

// object checks and keeps the match of a listener.
func (p *patch) object(m *networking.EnvoyFilter_EnvoyConfigObjectMatch) *Problem {
	p.match = m.GetListener()
	filter := p.match.GetFilterChain().GetFilter()
	sub := filter.GetSubFilter()
	switch {
	case m.GetObjectTypes() != nil && p.match == nil:
		return problem("", "%s is matched by listener alone", p.applyTo)
	case filter != nil && filter.GetName() == "":
		return problem(".listener.filterChain.filter.name", "is missing: a match of a filter needs it")
	case sub != nil && p.applyTo != networking.EnvoyFilter_HTTP_FILTER:
		return problem(".listener.filterChain.filter.subFilter", "is for HTTP_FILTER alone, not %s", p.applyTo)
	case sub != nil && networkName(filter.GetName()) != connectionManager:
		return problem(".listener.filterChain.filter.name", "is %q, should be %s where there is a subFilter", filter.GetName(), connectionManager)
	case sub != nil && sub.GetName() == "":
		return problem(".listener.filterChain.filter.subFilter.name", "is missing: a match of a filter needs it")
	}
	return nil
}

// noEffect is what istiod ignores, and so do we.
func noEffect(c *networking.EnvoyFilter_EnvoyConfigObjectPatch) (out []*Problem) {
	m, op := c.GetMatch().GetListener(), c.GetPatch().GetOperation()
	add := func(field, reason string) { out = append(out, problem(field, "%s", reason)) }
	if m.GetPortName() != "" {
		add(".match.listener.portName", "has no effect, as under istiod; use portNumber")
	}
	if m.GetFilterChain().GetTransportSocket() != "" {
		add(".match.listener.filterChain.transportSocket", "has no effect, as under istiod")
	}
	if m.GetListenerFilter() != "" {
		add(".match.listener.listenerFilter", "has no effect but with LISTENER_FILTER")
	}
	if c.GetPatch().GetFilterClass() != networking.EnvoyFilter_Patch_UNSPECIFIED {
		add(".patch.filterClass", "has no effect, as under istiod: say where the filter goes by INSERT_BEFORE, INSERT_AFTER or INSERT_FIRST")
	}
	switch c.GetApplyTo() {
	case networking.EnvoyFilter_EXTENSION_CONFIG:
		if !slices.Contains(adds, op) {
			add(".patch.operation", op.String()+" has no effect on EXTENSION_CONFIG, as under istiod; ADD is the one")
		}
	case networking.EnvoyFilter_HTTP_FILTER, networking.EnvoyFilter_NETWORK_FILTER:
		if op == networking.EnvoyFilter_Patch_MERGE_AND_REPLACE_LIST {
			add(".patch.operation", op.String()+" has no effect on a filter, as under istiod; MERGE or REPLACE it")
		}
		anchored := m.GetFilterChain().GetFilter() != nil
		if c.GetApplyTo() == networking.EnvoyFilter_HTTP_FILTER {
			anchored = m.GetFilterChain().GetFilter().GetSubFilter() != nil
		}
		if !anchored && (op == networking.EnvoyFilter_Patch_REMOVE || op == networking.EnvoyFilter_Patch_REPLACE) {
			add(".match", op.String()+" has no effect without the match of a filter, as under istiod")
		}
	}
	return out
}

// adds are the operations that add an object; of an extension's configuration there is no first and last.
var adds = []networking.EnvoyFilter_Patch_Operation{
	networking.EnvoyFilter_Patch_ADD, networking.EnvoyFilter_Patch_INSERT_FIRST,
	networking.EnvoyFilter_Patch_INSERT_BEFORE, networking.EnvoyFilter_Patch_INSERT_AFTER,
}
