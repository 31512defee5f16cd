package profile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
)

// annotation is one or several annotations of a pod that are settings.
type annotation struct {
	names []string
	// read puts the value of names[0] into a spec; of several, it finds the others itself.
	read func(s *Spec, annotations map[string]string) error
}

// annotations is Istio's, the single-purpose ones before proxy.istio.io/config: the first that says something counts.
func annotations() []annotation {
	const probe = "readiness.status.sidecar.istio.io/"
	list := func(name string, field func(*Capture) *[]string) annotation {
		return text(name, func(s *Spec, v string) error { *field(s.Capture) = splitList(v); return nil })
	}
	ports := func(name string, field func(*Capture) *[]intstr.IntOrString) annotation {
		return text(name, func(s *Spec, v string) error { *field(s.Capture) = splitPorts(v); return nil })
	}
	whole := func(name string, field func(*Proxy) **int32) annotation {
		return text(name, func(s *Spec, v string) error { return number(field(s.Proxy), strings.TrimSpace(v)) })
	}
	words := func(name string, field func(*Spec) **string) annotation {
		return text(name, func(s *Spec, v string) error { *field(s) = &v; return nil })
	}
	flag := func(name string, field func(*Proxy) **bool) annotation {
		return text(name, func(s *Spec, v string) error { return truth(field(s.Proxy), strings.ToLower(strings.TrimSpace(v))) })
	}
	return []annotation{
		text(contract.ModeAnnotation, func(s *Spec, v string) error { s.Capture.Mode = new(CaptureMode(v)); return nil }),
		list(contract.IncludeOutboundIPs, func(c *Capture) *[]string { return &c.IncludeOutboundIPRanges }),
		list(contract.ExcludeOutboundIPs, func(c *Capture) *[]string { return &c.ExcludeOutboundIPRanges }),
		ports(contract.IncludeInboundPorts, func(c *Capture) *[]intstr.IntOrString { return &c.IncludeInboundPorts }),
		ports(contract.ExcludeInboundPorts, func(c *Capture) *[]intstr.IntOrString { return &c.ExcludeInboundPorts }),
		ports(contract.IncludeOutboundPorts, func(c *Capture) *[]intstr.IntOrString { return &c.IncludeOutboundPorts }),
		ports(contract.ExcludeOutboundPorts, func(c *Capture) *[]intstr.IntOrString { return &c.ExcludeOutboundPorts }),
		list(contract.ExcludeInterfaces, func(c *Capture) *[]string { return &c.ExcludeInterfaces }),
		list(contract.RerouteInterfaces, func(c *Capture) *[]string { return &c.RerouteVirtualInterfaces }),
		list(contract.RerouteInterfacesByOldName, func(c *Capture) *[]string { return &c.RerouteVirtualInterfaces }),
		whole(contract.StatusPortAnnotation, func(p *Proxy) **int32 { return &p.StatusPort }),
		whole(probe+"initialDelaySeconds", func(p *Proxy) **int32 { return &p.Readiness.InitialDelaySeconds }),
		whole(probe+"periodSeconds", func(p *Proxy) **int32 { return &p.Readiness.PeriodSeconds }),
		whole(probe+"failureThreshold", func(p *Proxy) **int32 { return &p.Readiness.FailureThreshold }),
		{resourceAnnotations, readResources},
		words("sidecar.istio.io/proxyImage", func(s *Spec) **string { return &s.Proxy.Image }),
		words("sidecar.istio.io/logLevel", func(s *Spec) **string { return &s.Proxy.LogLevel }),
		words("sidecar.istio.io/componentLogLevel", func(s *Spec) **string { return &s.Proxy.ComponentLogLevel }),
		words("sidecar.istio.io/agentLogLevel", func(s *Spec) **string { return &s.Proxy.AgentLogLevel }),
		words("sidecar.istio.io/discoveryAddress", func(s *Spec) **string { return &s.ControlPlane.DiscoveryAddress }),
		text("sidecar.istio.io/nativeSidecar", readNative),
		flag("sidecar.istio.io/rewriteAppHTTPProbers", func(p *Proxy) **bool { return &p.RewriteAppProbes }),
		flag("prometheus.istio.io/merge-metrics", func(p *Proxy) **bool { return &p.MergePrometheus }),
		words(contract.ConfigAnnotation, func(s *Spec) **string { return &s.Proxy.Config }),
	}
}

// withoutEffect are annotations that Istio goes by and we do not, with what to do instead.
var withoutEffect = map[string]string{
	"sidecar.istio.io/proxyImageType":    "set sidecar.istio.io/proxyImage",
	"sidecar.istio.io/bootstrapOverride": "the bootstrap is not a template",
	"sidecar.istio.io/capNetBindService": "listen on ports from 1024 on",
}

// FromAnnotations reads the settings of a pod's annotations: a layer for each, in the order of [Resolve]. A value that is
// wrong is an error that names annotation, value and remedy; all of them are in err, and then there are no layers.
func FromAnnotations(pod map[string]string) (layers []Layer, warnings []string, err error) {
	var wrong []error
	for _, a := range annotations() {
		if !slices.ContainsFunc(a.names, func(name string) bool { _, ok := pod[name]; return ok }) {
			continue
		}
		l := Layer{Source: "annotation " + a.given(pod), Spec: blank()}
		if err := a.read(l.Spec, pod); err != nil {
			wrong = append(wrong, err)
			continue
		}
		found := problems(l.Spec, ofPod)
		for _, p := range found {
			wrong = append(wrong, a.blame(pod, p))
		}
		l.Spec.prune()
		layers = append(layers, l)
	}
	for name, instead := range withoutEffect {
		if value, ok := pod[name]; ok {
			warnings = append(warnings, fmt.Sprintf("annotation %s: %q has no effect: %s", name, value, instead))
		}
	}
	slices.Sort(warnings)
	if err := errors.Join(wrong...); err != nil {
		return nil, warnings, err
	}
	return layers, warnings, nil
}

// blank is a spec whose structs are all there.
func blank() *Spec {
	return &Spec{Proxy: &Proxy{Readiness: &Readiness{}}, Capture: &Capture{}, ControlPlane: &ControlPlane{}}
}

// prune drops the empty structs of a blank.
func (s *Spec) prune() {
	if *s.Proxy.Readiness == (Readiness{}) {
		s.Proxy.Readiness = nil
	}
	if *s.ControlPlane == (ControlPlane{}) {
		s.ControlPlane = nil
	}
}

// given is those of an annotation's names that a pod has.
func (a annotation) given(pod map[string]string) string {
	var names []string
	for _, name := range a.names {
		if _, ok := pod[name]; ok {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// blame is a problem of the spec as one of the annotation.
func (a annotation) blame(pod map[string]string, p problem) error {
	if name := a.given(pod); name != contract.ConfigAnnotation && !strings.Contains(name, ", ") {
		return annotationError(name, pod[name], p.want)
	}
	p.field = strings.TrimPrefix(strings.TrimPrefix(p.field, "spec.proxy.config"), ".")
	if p.field == "" {
		return fmt.Errorf("annotation %s: %s", a.given(pod), p.want)
	}
	return fmt.Errorf("annotation %s: %w", a.given(pod), p)
}

func annotationError(name, value, want string) error {
	return fmt.Errorf("annotation %s: %q: %s", name, value, want)
}

// text is an annotation by itself.
func text(name string, read func(s *Spec, value string) error) annotation {
	return annotation{[]string{name}, func(s *Spec, pod map[string]string) error {
		if err := read(s, pod[name]); err != nil {
			return annotationError(name, pod[name], err.Error())
		}
		return nil
	}}
}

// splitList reads a comma-separated list; an empty text is an empty list, which is not none.
func splitList(v string) []string {
	out := []string{}
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func splitPorts(v string) []intstr.IntOrString {
	out := []intstr.IntOrString{}
	for _, part := range splitList(v) {
		if n, err := strconv.ParseInt(part, 10, 32); err == nil {
			out = append(out, intstr.FromInt32(int32(n)))
			continue
		}
		out = append(out, intstr.FromString(part))
	}
	return out
}

func readNative(s *Spec, v string) error {
	var native *bool
	if err := truth(&native, strings.ToLower(strings.TrimSpace(v))); err != nil {
		return err
	}
	s.Proxy.Native = new(NativeNever)
	if *native {
		s.Proxy.Native = new(NativeAlways)
	}
	return nil
}

// resourceAnnotations: one of them replaces all resources that a profile has, as with Istio.
var resourceAnnotations = []string{"sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyCPULimit", "sidecar.istio.io/proxyMemoryLimit"}

func readResources(s *Spec, pod map[string]string) error {
	s.Proxy.Resources = &corev1.ResourceRequirements{}
	for i, name := range resourceAnnotations {
		value, ok := pod[name]
		if !ok {
			continue
		}
		quantity, err := resource.ParseQuantity(value)
		if err != nil {
			return annotationError(name, value, "want a quantity, such as 100m for a processor or 128Mi for memory")
		}
		list := &s.Proxy.Resources.Requests
		if i >= 2 {
			list = &s.Proxy.Resources.Limits
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[[]corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}[i%2]] = quantity
	}
	return nil
}
