package profile

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/logging"
)

// problem is one wrong value. As an error it names field, value and remedy.
type problem struct{ field, value, want string }

func (p problem) Error() string {
	if p.value == "" {
		return p.field + ": " + p.want
	}
	return fmt.Sprintf("%s: %q: %s", p.field, p.value, p.want)
}

// scope is whose settings are judged: some fields are the mesh's only.
type scope int

const (
	ofMesh scope = iota
	ofNamespace
	ofPod
)

// Validate says what is wrong with a profile by itself, all of it. meshNamespace is the namespace of the mesh's profile; one
// without a namespace is the mesh's as well. What goes wrong only together with other layers, [Settings.Check] says.
func (p *SidecarProfile) Validate(meshNamespace string) error {
	of := ofNamespace
	if p.Namespace == "" || p.Namespace == meshNamespace {
		of = ofMesh
	}
	var all []error
	if p.Name != Name {
		all = append(all, problem{"metadata.name", p.Name, "want " + Name + ": the one object of a namespace that counts"})
	}
	for _, found := range problems(&p.Spec, of) {
		all = append(all, found)
	}
	return errors.Join(all...)
}

// problems is everything that is wrong with one layer.
func problems(s *Spec, of scope) []problem {
	c := &checker{}
	c.meshOnly(s, of)
	if s.Proxy != nil {
		c.proxy(s.Proxy)
	}
	if s.Init != nil {
		c.image("spec.init.image", s.Init.Image)
		c.resources("spec.init.resources", s.Init.Resources)
	}
	if s.Capture != nil {
		c.capture(s.Capture)
	}
	if s.HotUpgrade != nil {
		c.hotUpgrade(s.HotUpgrade)
	}
	if s.Wasm != nil {
		c.names("spec.wasm.pullSecrets", s.Wasm.PullSecrets)
	}
	if s.ControlPlane != nil {
		c.controlPlane(s.ControlPlane)
	}
	return c.found
}

// checker gathers problems.
type checker struct{ found []problem }

func (c *checker) add(field string, value any, format string, args ...any) {
	c.found = append(c.found, problem{field, fmt.Sprint(value), fmt.Sprintf(format, args...)})
}

// meshOnly judges preset, injection and injector.
func (c *checker) meshOnly(s *Spec, of scope) {
	for _, part := range []struct {
		name string
		set  bool
	}{{"preset", s.Preset != nil}, {"injection", s.Injection != nil}, {"injector", s.Injector != nil}} {
		if part.set && of != ofMesh {
			c.add("spec."+part.name, "", "only the profile of the injector's own namespace has it: remove it here")
		}
	}
	oneOf(c, "spec.preset", s.Preset, PresetIstio, PresetASM)
	if s.Injection != nil {
		c.selectors("spec.injection.alwaysInjectSelector", s.Injection.AlwaysInjectSelector)
		c.selectors("spec.injection.neverInjectSelector", s.Injection.NeverInjectSelector)
		c.annotations("spec.injection.injectedAnnotations", s.Injection.InjectedAnnotations)
	}
	if s.Injector != nil {
		between(c, "spec.injector.replicaCount", s.Injector.ReplicaCount, 1, 50)
		for _, key := range slices.Sorted(maps.Keys(s.Injector.NodeSelector)) {
			at := "spec.injector.nodeSelector." + key
			c.each(at, key, validation.IsQualifiedName(key))
			c.each(at, s.Injector.NodeSelector[key], validation.IsValidLabelValue(s.Injector.NodeSelector[key]))
		}
		c.resources("spec.injector.resources", s.Injector.Resources)
	}
}

// each adds what Kubernetes says of a value.
func (c *checker) each(field, value string, messages []string) {
	if len(messages) > 0 {
		c.add(field, value, "%s", strings.Join(messages, "; "))
	}
}

// maxSelectors bounds a list of selectors: each is tried on each pod.
const maxSelectors = 64

func (c *checker) selectors(field string, list []metav1.LabelSelector) {
	if len(list) > maxSelectors {
		c.add(field, len(list), "want at most %d selectors", maxSelectors)
	}
	for i := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		if len(list[i].MatchLabels) == 0 && len(list[i].MatchExpressions) == 0 {
			c.add(at, "{}", "an empty selector matches every pod: want matchLabels or matchExpressions")
			continue
		}
		if _, err := metav1.LabelSelectorAsSelector(&list[i]); err != nil {
			c.add(at, "", "%s", err)
		}
	}
}

// ownAnnotation reports whether the injector writes an annotation itself, or goes by it.
func ownAnnotation(key string) bool {
	domain, _, _ := strings.Cut(key, "/")
	return slices.Contains([]string{"istio.io/rev", "kubectl.kubernetes.io/default-container", "kubectl.kubernetes.io/default-logs-container"}, key) ||
		slices.Contains([]string{"sidecar.istio.io", "inject.istio.io", "proxy.istio.io"}, domain) || domain == Group || strings.HasSuffix(domain, "."+Group)
}

func (c *checker) annotations(field string, list map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(list)) {
		c.each(field+"."+key, key, validation.IsQualifiedName(strings.ToLower(key)))
		if ownAnnotation(key) {
			c.add(field+"."+key, list[key], "the injector writes this annotation itself, or goes by it: remove it")
		}
	}
}

func (c *checker) proxy(p *Proxy) {
	const field = "spec.proxy."
	if p.Config != nil {
		c.config(field+"config", *p.Config)
	}
	c.image(field+"image", p.Image)
	oneOf(c, field+"imagePullPolicy", p.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)
	c.names(field+"imagePullSecrets", p.ImagePullSecrets)
	c.resources(field+"resources", p.Resources)
	parsed(c, field+"logLevel", p.LogLevel, contract.CheckEnvoyLevels)
	parsed(c, field+"componentLogLevel", p.ComponentLogLevel, contract.CheckEnvoyComponents)
	parsed(c, field+"agentLogLevel", p.AgentLogLevel, func(v string) error { _, err := logging.ParseLevels(v); return err })
	between(c, field+"concurrency", p.Concurrency, 0, 1024)
	c.lifecycle(field+"lifecycle", p.Lifecycle)
	c.duration(field+"terminationDrainDuration", p.TerminationDrainDuration, time.Hour)
	between(c, field+"statusPort", p.StatusPort, 0, 65535)
	if p.StatusPort != nil && slices.Contains(takenPorts, *p.StatusPort) {
		c.add(field+"statusPort", *p.StatusPort, "the agent or Envoy has this port: want another, 15020 or 15021")
	}
	if r := p.Readiness; r != nil {
		between(c, field+"readiness.initialDelaySeconds", r.InitialDelaySeconds, 0, 1<<31-1)
		between(c, field+"readiness.periodSeconds", r.PeriodSeconds, 1, 1<<31-1)
		between(c, field+"readiness.failureThreshold", r.FailureThreshold, 1, 1<<31-1)
	}
	c.env(field+"env", p.Env)
	oneOf(c, field+"native", p.Native, NativeAuto, NativeAlways, NativeNever)
	if p.SeccompProfile != nil {
		c.seccomp(field+"seccompProfile", *p.SeccompProfile)
	}
}

// takenPorts are the agent's and Envoy's, but for those that are status ports.
var takenPorts = []int32{contract.AdminPort, contract.OutboundPort, contract.DebugPort, contract.InboundPort, contract.TunnelPort, contract.DNSPort, contract.StatsPort}

func (c *checker) config(field, text string) {
	config, err := parseConfig(text)
	if err != nil {
		for line := range strings.SplitSeq(err.Error(), "\n") {
			c.add(field, "", "%s", line)
		}
		return
	}
	probe := Spec{Proxy: &Proxy{}, Capture: &Capture{}, DNS: &DNS{}, ControlPlane: &ControlPlane{}}
	for _, name := range slices.Sorted(maps.Keys(config)) {
		if put := typed[name]; put != nil {
			if err := put(&probe, config[name]); err != nil {
				c.add(field+"."+name, "", "%s", err)
			}
		}
	}
	for _, p := range problems(&probe, ofPod) { // as the typed fields are judged
		p.field = field + ", " + strings.TrimPrefix(p.field, "spec.")
		c.found = append(c.found, p)
	}
}

var imageName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._\-/:@+]*$`)

func (c *checker) image(field string, image *string) {
	if image != nil && !imageName.MatchString(*image) {
		c.add(field, *image, "want the name of an image, such as registry.example.com/understudy/proxy:v1")
	}
}

// names judges names of Secrets.
func (c *checker) names(field string, names []string) {
	for i, name := range names {
		c.each(fmt.Sprintf("%s[%d]", field, i), name, validation.IsDNS1123Subdomain(name))
	}
}

// leastMemory: with less no container starts; it is a number that lacks its unit.
var leastMemory = resource.MustParse("4Mi")

func (c *checker) resources(field string, r *corev1.ResourceRequirements) {
	if r == nil {
		return
	}
	for _, list := range []struct {
		name   string
		values corev1.ResourceList
	}{{"requests", r.Requests}, {"limits", r.Limits}} {
		for _, name := range slices.Sorted(maps.Keys(list.values)) {
			at, q := field+"."+list.name+"."+string(name), list.values[name]
			switch {
			case q.Sign() < 0:
				c.add(at, q.String(), "want a quantity that is not negative")
			case name == corev1.ResourceMemory && q.Sign() > 0 && q.Cmp(leastMemory) < 0:
				c.add(at, q.String(), "%d bytes are less than any container needs, 4Mi; %sMi?", q.Value(), strings.TrimRight(q.String(), "kKimMGTPE"))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Requests)) {
		request := r.Requests[name]
		if limit, ok := r.Limits[name]; ok && request.Cmp(limit) > 0 {
			c.add(field+".requests."+string(name), request.String(), "want at most the limit, %s", limit.String())
		}
	}
}

func (c *checker) lifecycle(field string, l *corev1.Lifecycle) {
	if l == nil {
		return
	}
	for _, hook := range []struct {
		name    string
		handler *corev1.LifecycleHandler
	}{{"postStart", l.PostStart}, {"preStop", l.PreStop}} {
		if h := hook.handler; h != nil && count(h.Exec != nil, h.HTTPGet != nil, h.TCPSocket != nil, h.Sleep != nil) != 1 {
			c.add(field+"."+hook.name, "", "want exactly one of exec, httpGet and sleep")
		}
	}
}

func count(conditions ...bool) (n int) {
	for _, is := range conditions {
		if is {
			n++
		}
	}
	return n
}

// duration wants whole seconds: variables and Kubernetes' fields have no smaller unit.
func (c *checker) duration(field string, d *metav1.Duration, most time.Duration) {
	if d != nil && (d.Duration < 0 || d.Duration > most || d.Duration%time.Second != 0) {
		c.add(field, d.Duration, "want whole seconds from 0s to %s", most)
	}
}

func (c *checker) env(field string, env map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		at := field + "." + name
		if known, ok := meaning[name]; ok {
			c.add(at, env[name], "the injector sets it: use spec.%s", known.field)
			continue
		}
		if slices.Contains(ownVariables, name) {
			c.add(at, env[name], "the injector sets it: remove it")
			continue
		}
		c.each(at, name, validation.IsEnvVarName(name))
	}
}

// ownVariables are what the injector sets and no field is for.
var ownVariables = []string{"JWT_POLICY", "PILOT_CERT_PROVIDER", "POD_NAME", "POD_NAMESPACE", "POD_UID", "INSTANCE_IP", "SERVICE_ACCOUNT", "HOST_IP",
	"ISTIO_CPU_LIMIT", contract.ConfigVariable, contract.PodPortsVariable, contract.AppsVariable, "ISTIO_META_NODE_NAME", "ISTIO_META_WORKLOAD_NAME",
	"ISTIO_META_OWNER", contract.VersionVariable, contract.VersionAltVariable, contract.ProbersVariable, contract.PrometheusVariable}

func (c *checker) seccomp(field string, p corev1.SeccompProfile) {
	oneOf(c, field+".type", &p.Type, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined, corev1.SeccompProfileTypeLocalhost)
	if local := p.Type == corev1.SeccompProfileTypeLocalhost; local != (p.LocalhostProfile != nil && *p.LocalhostProfile != "") {
		c.add(field+".localhostProfile", "", "want it with type Localhost, and with no other")
	}
}

func (c *checker) hotUpgrade(h *HotUpgrade) {
	if h.EmptyImage != nil && *h.EmptyImage != "" {
		c.image("spec.hotUpgrade.emptyImage", h.EmptyImage)
	}
	if h.HandoffDir != nil && (!path.IsAbs(*h.HandoffDir) || path.Clean(*h.HandoffDir) != *h.HandoffDir || *h.HandoffDir == "/") {
		c.add("spec.hotUpgrade.handoffDir", *h.HandoffDir, "want an absolute path of a directory, such as /etc/asm/uds")
	}
	c.duration("spec.hotUpgrade.upgradeDrainDuration", h.UpgradeDrainDuration, 30*24*time.Hour)
	oneOf(c, "spec.hotUpgrade.standbyRequests", h.StandbyRequests, StandbySame, StandbyResize)
}

// oneOf judges an enumeration.
func oneOf[T ~string](c *checker, field string, value *T, allowed ...T) {
	if value != nil && !slices.Contains(allowed, *value) {
		var names []string
		for _, a := range allowed {
			names = append(names, string(a))
		}
		c.add(field, string(*value), "want one of %s", strings.Join(names, ", "))
	}
}

func between(c *checker, field string, value *int32, least, most int32) {
	if value != nil && (*value < least || *value > most) {
		c.add(field, *value, "want a whole number from %d to %d", least, most)
	}
}

// parsed judges a text by its parser.
func parsed(c *checker, field string, value *string, parse func(string) error) {
	if value != nil {
		if err := parse(*value); err != nil {
			c.add(field, *value, "%s", err)
		}
	}
}
