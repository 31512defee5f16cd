package carry

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// tree is settings as YAML has them.
type tree map[string]any

// raw removes what is at a path and returns it; nil if nothing is.
func (t tree) raw(path string) any {
	first, rest, deeper := strings.Cut(path, ".")
	if deeper {
		sub, _ := t[first].(map[string]any)
		return tree(sub).raw(rest)
	}
	value := t[first]
	delete(t, first)
	return value
}

// take is raw of what says something: not "", [] and {}.
func (t tree) take(path string) any {
	if value := t.raw(path); !empty(value) {
		return value
	}
	return nil
}

// empty reports whether a value says nothing: in Helm's values that is how one is left out.
func empty(value any) bool {
	v := reflect.ValueOf(value)
	switch v.Kind() {
	case reflect.Invalid:
		return true
	case reflect.String, reflect.Map, reflect.Slice:
		return v.Len() == 0
	}
	return false
}

// put sets a field of a spec.
func put(spec map[string]any, path string, value any) {
	first, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		spec[first] = value
		return
	}
	sub, ok := spec[first].(map[string]any)
	if !ok {
		sub = map[string]any{}
		spec[first] = sub
	}
	put(sub, rest, value)
}

// same are values of the chart that mean the same in a field of ours.
var same = []struct{ value, field string }{
	{"global.proxy.resources", "proxy.resources"},
	{"global.proxy_init.resources", "init.resources"},
	{"global.proxy.logLevel", "proxy.logLevel"},
	{"global.proxy.componentLogLevel", "proxy.componentLogLevel"},
	{"global.logging.level", "proxy.agentLogLevel"},
	{"global.proxy.lifecycle", "proxy.lifecycle"},
	{"global.proxy.holdApplicationUntilProxyStarts", "proxy.holdApplicationUntilProxyStarts"},
	{"global.proxy.statusPort", "proxy.statusPort"},
	{"global.proxy.readinessInitialDelaySeconds", "proxy.readiness.initialDelaySeconds"},
	{"global.proxy.readinessPeriodSeconds", "proxy.readiness.periodSeconds"},
	{"global.proxy.readinessFailureThreshold", "proxy.readiness.failureThreshold"},
	{"global.proxy.seccompProfile", "proxy.seccompProfile"},
	{"global.proxy.clusterDomain", "controlPlane.clusterDomain"},
	{"global.imagePullPolicy", "proxy.imagePullPolicy"},
	{"global.imagePullSecrets", "proxy.imagePullSecrets"},
	{"global.caAddress", "controlPlane.caAddress"},
	{"global.meshID", "controlPlane.meshID"},
	{"global.network", "controlPlane.network"},
	{"global.multiCluster.clusterName", "controlPlane.clusterID"},
	{"pilot.cni.enabled", "init.cni"},
	{"istio_cni.enabled", "init.cni"},
	{"sidecarInjectorWebhook.enableNamespacesByDefault", "injection.enableNamespacesByDefault"},
	{"sidecarInjectorWebhook.rewriteAppHTTPProbe", "proxy.rewriteAppProbes"},
}

// lists are values that are lists as text.
var lists = []struct{ value, field string }{
	{"global.proxy.includeIPRanges", "capture.includeOutboundIPRanges"},
	{"global.proxy.excludeIPRanges", "capture.excludeOutboundIPRanges"},
	{"global.proxy.includeInboundPorts", "capture.includeInboundPorts"},
	{"global.proxy.excludeInboundPorts", "capture.excludeInboundPorts"},
	{"global.proxy.includeOutboundPorts", "capture.includeOutboundPorts"},
	{"global.proxy.excludeOutboundPorts", "capture.excludeOutboundPorts"},
}

// meaningless are values that configure what is not there with us, or what the other ConfigMap says as well; a value that
// is not the one here is lost.
var meaningless = []struct {
	value   string
	unless  any // the value of Istio's that changes nothing; nil: none does
	instead string
}{
	{"global.proxy.autoInject", nil, ""}, // the policy of config
	{"global.proxy.image", nil, ""},      // the image is ours
	{"global.proxy_init.image", nil, ""},
	{"global.proxy_init.forceApplyIptables", nil, ""}, // always so
	{"global.proxy.privileged", false, "the proxy has no more rights than it needs"},
	{"global.proxy.outlierLogPath", "", "there is no such log"},
	{"global.proxy.startupProbe.enabled", true, "there always is one"},
	{"global.proxy.startupProbe.failureThreshold", float64(600), "it is 600 s"},
	{"global.proxy.tracer", "none", "set proxy.config with tracing"},
	{"global.proxy.enableCoreDump", false, "there are none"},
	{"global.pilotCertProvider", "istiod", "another authority than istiod's is not supported"},
	{"global.logAsJson", false, "the agent logs JSON with --log_as_json only"},
	{"global.mountMtlsCerts", false, "mount them by sidecar.istio.io/userVolume"},
	{"sidecarInjectorWebhook.reinvocationPolicy", nil, ""}, // always IfNeeded
	{"sidecarInjectorWebhook.alwaysInjectSelector", nil, ""},
	{"sidecarInjectorWebhook.neverInjectSelector", nil, ""},
	{"sidecarInjectorWebhook.injectedAnnotations", nil, ""},
	{"sidecarInjectorWebhook.defaultTemplates", nil, ""},
}

// values carries Helm's values.
func (o *Outcome) values(source string, t tree) {
	for _, s := range same {
		if value := t.take(s.value); value != nil {
			put(o.mesh, s.field, value)
		}
	}
	for _, l := range lists {
		// An empty text is an empty list: with includeIPRanges, nothing is captured.
		if text, ok := t.raw(l.value).(string); ok {
			put(o.mesh, l.field, strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }))
		}
	}
	if on, _ := t.take("global.nativeNftables").(bool); on {
		put(o.mesh, "proxy.env", map[string]any{"NATIVE_NFTABLES": "true"})
	}
	address, _ := t.take("global.remotePilotAddress").(string)
	namespace, _ := t.take("global.istioNamespace").(string)
	switch {
	case address != "":
		put(o.mesh, "controlPlane.discoveryAddress", address+":15012")
	case namespace != "" && namespace != "istio-system":
		put(o.mesh, "controlPlane.discoveryAddress", "istiod."+namespace+".svc:15012")
	}
	for _, m := range meaningless {
		if value := t.take(m.value); value != nil && m.instead != "" && !reflect.DeepEqual(value, m.unless) {
			o.lose(source, m.value, value, m.instead)
		}
	}
	for _, part := range []string{"global.proxy", "global.proxy_init", "sidecarInjectorWebhook"} {
		rest, _ := t.take(part).(map[string]any)
		for _, key := range slices.Sorted(maps.Keys(rest)) {
			if !empty(rest[key]) && !emptyTree(rest[key]) {
				o.lose(source, part+"."+key, rest[key], "there is no such setting")
			}
		}
	}
}

// emptyTree reports whether nothing is left of a map of maps.
func emptyTree(value any) bool {
	m, ok := value.(map[string]any)
	for _, v := range m {
		if !empty(v) && !emptyTree(v) {
			return false
		}
	}
	return ok
}

// ownTemplates are those that Istio's chart brings.
var ownTemplates = []string{"sidecar", "gateway", "grpc-simple", "grpc-agent", "waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"}

// injector carries the injector's own configuration.
func (o *Outcome) injector(source string, t tree) {
	switch policy := t.take("policy"); policy {
	case "enabled", nil:
		put(o.mesh, "injection.autoInjectByAnnotation", true)
	case "disabled":
		put(o.mesh, "injection.autoInjectByAnnotation", false)
	default: // any other one injects nothing
		put(o.mesh, "injection.paused", true)
		o.lose(source, "policy", policy, "it injects nothing: spec.injection.paused")
	}
	for _, key := range []string{"alwaysInjectSelector", "neverInjectSelector"} {
		list, _ := t.take(key).([]any)
		var right []any
		for i, selector := range list {
			if emptyTree(selector) {
				o.lose(source, fmt.Sprintf("%s[%d]", key, i), selector, "an empty selector matches nothing: it is left out")
				continue
			}
			right = append(right, selector)
		}
		if right != nil {
			put(o.mesh, "injection."+key, right)
		}
	}
	if annotations := t.take("injectedAnnotations"); annotations != nil {
		put(o.mesh, "injection.injectedAnnotations", annotations)
	}
	if templates := t.take("defaultTemplates"); templates != nil && !reflect.DeepEqual(templates, []any{"sidecar"}) {
		o.lose(source, "defaultTemplates", templates, "there is one template, sidecar")
	}
	if aliases := t.take("aliases"); aliases != nil {
		o.lose(source, "aliases", aliases, "there is one template, sidecar")
	}
	templates, _ := t.take("templates").(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(templates)) {
		if !slices.Contains(ownTemplates, name) {
			o.lose(source, "templates", name, "templates are not carried: use fields, or a container istio-proxy in the pod")
		}
	}
}

// meshConfig carries what the injector takes of MeshConfig; the rest is istiod's.
func (o *Outcome) meshConfig(source string, t tree) {
	if config := t.take("defaultConfig"); config != nil {
		text, err := yaml.Marshal(config)
		if err != nil {
			o.lose(source, "defaultConfig", config, err.Error())
		}
		put(o.mesh, "proxy.config", string(text))
	}
	if domain := t.take("trustDomain"); domain != nil {
		put(o.mesh, "controlPlane.trustDomain", domain)
	}
	if merge := t.take("enablePrometheusMerge"); merge != nil {
		put(o.mesh, "proxy.mergePrometheus", merge)
	}
}

// proxyConfig carries a ProxyConfig of a namespace, or of the mesh.
func (o *Outcome) proxyConfig(in object) {
	source := fmt.Sprintf("ProxyConfig %s/%s", in.Metadata.Namespace, in.Metadata.Name)
	t := tree(in.Spec)
	if selector := t.take("selector"); selector != nil {
		o.lose(source, "spec.selector", selector, "settings of single pods are annotations of theirs: proxy.istio.io/config")
		return
	}
	spec := o.mesh
	if in.Metadata.Namespace != o.root {
		if spec = o.namespaces[in.Metadata.Namespace]; spec == nil {
			spec = map[string]any{}
			o.namespaces[in.Metadata.Namespace] = spec
		}
	}
	if concurrency := t.take("concurrency"); concurrency != nil {
		put(spec, "proxy.concurrency", concurrency)
	}
	if variables := t.take("environmentVariables"); variables != nil {
		put(spec, "proxy.env", variables)
	}
	for _, key := range slices.Sorted(maps.Keys(t)) {
		if !emptyTree(t[key]) {
			o.lose(source, "spec."+key, t[key], "there is no such setting")
		}
	}
}
