package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// recorded is the annotation sidecar.istio.io/status in Istio's form: what an injection has put into a pod. Hash is our marker.
type recorded struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
	Revision         string   `json:"revision"`
	// Hash is of the settings but for Image, the proxy's; Annotations and Labels are those that are ours, and were not the user's.
	Hash        string   `json:"understudy.mesh/hash"`
	Image       string   `json:"understudy.mesh/image,omitempty"`
	Annotations []string `json:"understudy.mesh/annotations,omitempty"`
	Labels      []string `json:"understudy.mesh/labels,omitempty"`
	// Variables are those of the webhook's URL that the pod was injected with.
	Variables map[string]string `json:"understudy.mesh/variables,omitempty"`
}

// readStatus is what an earlier pass of ours has recorded; nil if there is none.
func readStatus(annotations map[string]string) (*recorded, error) {
	text, ok := annotations[AnnotationStatus]
	if !ok {
		return nil, nil
	}
	var r recorded
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return nil, fmt.Errorf("annotation %s: %q: want what an injector has written there; delete it: %w", AnnotationStatus, text, err)
	}
	if r.Hash == "" {
		return nil, fmt.Errorf("annotation %s: %q: another injector's: take what it has put into the pod out of it first", AnnotationStatus, text)
	}
	return &r, nil
}

// userAnnotations are a pod's annotations without those that an earlier injection has added: those that are settings.
func userAnnotations(annotations map[string]string) map[string]string {
	r, err := readStatus(annotations)
	if err != nil || r == nil {
		return annotations
	}
	out := maps.Clone(annotations)
	for _, name := range r.Annotations {
		delete(out, name)
	}
	return out
}

// annotate sets an annotation, and records it unless it was the user's.
func (b *builder) annotate(name, value string) {
	if !slices.Contains(b.own.Annotations, name) {
		b.own.Annotations = append(b.own.Annotations, name)
	}
	b.annotations[name] = value
}

// annotateNew is annotate for what a user may say otherwise.
func (b *builder) annotateNew(name, value string) {
	if _, set := b.annotations[name]; !set {
		b.annotate(name, value)
	}
}

// tlsLabel says that a pod takes mutual TLS.
const tlsLabel = "security.istio.io/tlsMode"

// maxLabel is how long the value of a label may be.
const maxLabel = 63

// label sets a label that is not there.
func (b *builder) label(name, value string) {
	if _, set := b.labels[name]; set || value == "" {
		return
	}
	if len(value) > maxLabel {
		value = strings.TrimRight(value[:maxLabel], "-_.") // it must end in a letter or digit
	}
	b.labels[name] = value
	b.own.Labels = append(b.own.Labels, name)
}

// writeMetadata adds Istio's labels and annotations, and what this pass has done.
func (b *builder) writeMetadata() {
	now, said := b.pod.Metadata, b.labels
	name := cmp.Or(said["app.kubernetes.io/name"], said["app"], b.workload().Name)
	b.label("service.istio.io/canonical-name", name)
	b.label("service.istio.io/canonical-revision", cmp.Or(said["app.kubernetes.io/version"], said["version"], "latest"))
	if !b.files() { // where nobody gives it a certificate, a peer that believed this label could not reach the pod
		b.label(tlsLabel, "istio")
	}
	b.label("topology.istio.io/network", b.network())

	b.annotateNew(LabelRevision, contract.Revision)
	if apps := b.applications(b.pod.Spec.Containers); len(apps) > 0 {
		b.annotateNew("kubectl.kubernetes.io/default-container", apps[0].Name)
		b.annotateNew("kubectl.kubernetes.io/default-logs-container", apps[0].Name)
	}
	if b.hot {
		for slot, versions := range map[string][2]string{contract.ProxyContainer: {"1", "0"}, contract.SecondContainer: {"0", "1"}} {
			b.annotate(contract.VersionAnnotation+slot, versions[0])
			b.annotate(contract.VersionAltAnnotation+slot, versions[1])
		}
	}
	for name, value := range b.settings.Injection.InjectedAnnotations {
		b.annotateNew(name, value)
	}
	if *b.settings.Init.CNI {
		b.annotateCapture()
	}
	if text := b.user.text(); text != "" {
		b.annotate(overridesAnnotation, text)
	}
	slices.Sort(b.own.Annotations)
	b.annotations[AnnotationStatus] = asJSON(b.own)
	if !b.pod.hasMetadata {
		b.ops.add("/metadata", map[string]any{"labels": b.labels, "annotations": b.annotations})
		return
	}
	b.ops.fields("/metadata/labels", now.Labels, b.labels)
	b.ops.fields("/metadata/annotations", now.Annotations, b.annotations)
}

// annotateCapture tells istio-cni, which goes by annotations, what istio-init would be told.
func (b *builder) annotateCapture() {
	c := b.settings.Capture
	const outbound, inbound, excluded = contract.IncludeOutboundIPs, contract.IncludeInboundPorts, contract.ExcludeOutboundPorts
	if *c.Mode == profile.None { // a mode that istio-cni does not know
		if _, users := b.annotations[contract.ModeAnnotation]; users {
			b.warn("annotation %s: istio-cni refuses pods with NONE: say it in a SidecarProfile, as capture.mode", contract.ModeAnnotation)
		}
		b.annotate(outbound, "")
		b.annotate(inbound, "")
		return
	}
	b.annotateNew(contract.ModeAnnotation, string(*c.Mode))
	for _, a := range [][2]string{
		{outbound, strings.Join(c.IncludeOutboundIPRanges, ",")},
		{contract.ExcludeOutboundIPs, strings.Join(c.ExcludeOutboundIPRanges, ",")},
		{inbound, join(c.IncludeInboundPorts)},
		{contract.ExcludeInboundPorts, join(c.ExcludeInboundPorts)},
		{contract.IncludeOutboundPorts, join(c.IncludeOutboundPorts)},
		{excluded, join(c.ExcludeOutboundPorts)},
		{contract.ExcludeInterfaces, strings.Join(c.ExcludeInterfaces, ",")},
		{contract.RerouteInterfaces, strings.Join(c.RerouteVirtualInterfaces, ",")},
	} {
		if _, users := b.annotations[a[0]]; users { // with the floor, which is not the user's to leave out
			b.annotations[a[0]] = a[1]
		} else if a[1] != "" || a[0] == outbound || a[0] == inbound || a[0] == excluded { // without these, istio-cni captures everything but outbound 15020
			b.annotate(a[0], a[1])
		}
	}
}
