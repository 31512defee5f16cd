package inject

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// The kubelet's probes of the proxy: it may take ten minutes to start, as with Istio.
const (
	startupPeriod, startupFailures = 1, 600
	probeTimeout                   = 3
)

var errNoImage = errors.New("proxy.image is empty: set it in a SidecarProfile, or the pod's annotation sidecar.istio.io/proxyImage")

// slot is one container of the proxy.
type slot struct {
	name  string
	value any
}

// slots are the containers of the proxy, with what the user has said of them: one, or two for hot upgrades. The pod's uid for the proxy is known
// afterwards.
func (b *builder) slots() ([]slot, error) {
	b.findIDs()
	mounts, err := b.mounts()
	if err != nil {
		return nil, err
	}
	if *b.settings.Proxy.Image == "" {
		return nil, errNoImage
	}
	names := []string{contract.ProxyContainer}
	if b.hot {
		names = append(names, contract.SecondContainer)
	}
	var slots []slot
	for i, name := range names {
		c := b.proxy(name)
		c.VolumeMounts = mounts
		if i > 0 {
			c.Image = *b.settings.HotUpgrade.EmptyImage
			c.Resources = b.standbyResources(c.Resources)
		}
		merged, err := b.user.merge(c)
		if err != nil {
			return nil, err
		}
		slots = append(slots, slot{name, merged})
	}
	b.warnOfUsers()
	return slots, nil
}

// proxy is a slot as the settings have it.
func (b *builder) proxy(name string) *corev1.Container {
	s := b.settings.Proxy
	c := &corev1.Container{
		Name: name, Image: *s.Image, ImagePullPolicy: *s.ImagePullPolicy,
		Args: b.proxyArgs(), Env: b.proxyEnv(name), Lifecycle: b.lifecycle(),
		Ports:           []corev1.ContainerPort{{Name: "http-envoy-prom", ContainerPort: contract.StatsPort, Protocol: corev1.ProtocolTCP}},
		Resources:       *s.Resources,
		SecurityContext: b.unprivileged(),
	}
	if b.native {
		c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
	}
	if b.hot {
		c.Resources = *withRequests(s.Resources)
	} else if *s.StatusPort != 0 {
		c.StartupProbe = ready(&corev1.Probe{PeriodSeconds: startupPeriod, FailureThreshold: startupFailures})
		c.ReadinessProbe = ready(&corev1.Probe{
			InitialDelaySeconds: *s.Readiness.InitialDelaySeconds, PeriodSeconds: *s.Readiness.PeriodSeconds,
			FailureThreshold: *s.Readiness.FailureThreshold,
		})
	}
	if *b.settings.Capture.Mode == profile.TProxy { // Envoy binds to the client's address
		c.SecurityContext.RunAsUser, c.SecurityContext.RunAsNonRoot = new(int64(0)), new(false)
		c.SecurityContext.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	}
	return c
}

func ready(p *corev1.Probe) *corev1.Probe {
	p.HTTPGet = &corev1.HTTPGetAction{Path: contract.ReadyPath, Port: intstr.FromInt32(contract.ReadyPort)}
	p.TimeoutSeconds = probeTimeout
	return p
}

func (b *builder) proxyArgs() []string {
	s := b.settings
	args := []string{
		"proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc." + *s.ControlPlane.ClusterDomain,
		"--proxyLogLevel=" + *s.Proxy.LogLevel, "--proxyComponentLogLevel=" + *s.Proxy.ComponentLogLevel,
		"--log_output_level=" + *s.Proxy.AgentLogLevel,
	}
	if port := *s.Proxy.StatusPort; port != contract.StatusPort {
		args = append(args, "--statusPort", strconv.Itoa(int(port)))
	}
	if s.Proxy.Concurrency != nil {
		args = append(args, "--concurrency", strconv.Itoa(int(*s.Proxy.Concurrency)))
	}
	if b.files() {
		args = append(args, "--configDir", meshDir)
	}
	if b.hot {
		args = append(args, "--handoffDir", *s.HotUpgrade.HandoffDir, "--upgradeDrainDuration", s.HotUpgrade.UpgradeDrainDuration.Duration.String())
	}
	return args
}

func (b *builder) files() bool { return *b.settings.ControlPlane.Mode == profile.ModeFiles }

// lifecycle is what the settings say, and for the hooks that they leave open what the place of the proxy needs.
func (b *builder) lifecycle() *corev1.Lifecycle {
	s := b.settings.Proxy
	hooks := corev1.Lifecycle{}
	if s.Lifecycle != nil {
		hooks = *s.Lifecycle
	}
	run := func(command ...string) *corev1.LifecycleHandler {
		return &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: command}}
	}
	// A native sidecar without slots has a startup probe, which the kubelet waits for.
	if hooks.PostStart == nil && (b.hot || !b.native && *s.HoldApplicationUntilProxyStart) {
		hooks.PostStart = run("pilot-agent", "wait")
	}
	// The kubelet stops a native sidecar after the application: it has to drain before.
	if hooks.PreStop == nil && b.native && !b.hot && *s.StatusPort != 0 {
		hooks.PreStop = run("pilot-agent", "request", "--debug-port="+strconv.Itoa(int(*s.StatusPort)), "POST", "drain")
	}
	if hooks == (corev1.Lifecycle{}) {
		return nil
	}
	return &hooks
}

// unprivileged is what the proxy may: nothing. It meets Pod Security restricted.
func (b *builder) unprivileged() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: new(b.uid), RunAsGroup: new(b.gid), RunAsNonRoot: new(true),
		Privileged: new(false), AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: b.seccomp(),
	}
}

// seccomp is nil where the pod has a profile of its own: it is for our containers too.
func (b *builder) seccomp() *corev1.SeccompProfile {
	switch of := b.pod.Spec.SecurityContext; {
	case b.settings.Proxy.SeccompProfile != nil:
		return b.settings.Proxy.SeccompProfile
	case of != nil && of.SeccompProfile != nil:
		return nil
	}
	return &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}
}

// openShiftUIDs and openShiftGroups are annotations of a namespace: the only users and groups that its pods may have, as
// FIRST/COUNT or FIRST-LAST.
const (
	openShiftUIDs   = "openshift.io/sa.scc.uid-range"
	openShiftGroups = "openshift.io/sa.scc.supplemental-groups"
)

// findIDs finds the user and the group that the proxy runs as. The last ones of a namespace's range: applications get the first.
func (b *builder) findIDs() {
	for _, of := range []struct {
		annotation string
		id         *int64
	}{{openShiftUIDs, &b.uid}, {openShiftGroups, &b.gid}} {
		annotation, id := of.annotation, of.id
		text, ok := b.env.Namespace.Annotations[annotation]
		if !ok {
			continue
		}
		last, err := lastID(text)
		if err != nil {
			b.warn("namespace %s, annotation %s: %q: want FIRST/COUNT or FIRST-LAST; the proxy runs as %d", b.env.Namespace.Name, annotation, text, *id)
			continue
		}
		*id = last
	}
	if uid := b.user.runAsUser(); uid != nil { // of the container istio-proxy; that of the application is its own affair
		b.uid = *uid
	}
}

func lastID(text string) (int64, error) {
	text, _, _ = strings.Cut(text, ",") // the first range of several
	if _, last, isRange := strings.Cut(text, "-"); isRange {
		return strconv.ParseInt(last, 10, 64)
	}
	first, count, _ := strings.Cut(text, "/")
	from, err := strconv.ParseInt(first, 10, 64)
	n, err2 := strconv.ParseInt(count, 10, 64)
	if err != nil || err2 != nil || n < 1 || from < 0 {
		return 0, fmt.Errorf("range %q", text)
	}
	return from + n - 1, nil
}

// warnOfUsers says which of the application's containers is not captured, because it runs as the proxy does.
func (b *builder) warnOfUsers() {
	if *b.settings.Capture.Mode == profile.None {
		return
	}
	var common *int64
	if of := b.pod.Spec.SecurityContext; of != nil {
		common = of.RunAsUser
	}
	for _, c := range b.applications(b.pod.Spec.Containers) {
		user := common
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			user = c.SecurityContext.RunAsUser
		}
		if user != nil && *user == b.uid {
			b.warn("container %s runs as user %d, as the proxy does: its traffic is not captured; give it another runAsUser", c.Name, b.uid)
		}
	}
}

// Requests of a slot that does nothing but wait: the upgrader raises them before it serves.
const idleCPU, idleMemory = "10m", "16Mi"

// standbyResources are those of the slot with the empty image: small requests, if they can be raised in the running pod.
func (b *builder) standbyResources(full corev1.ResourceRequirements) corev1.ResourceRequirements {
	wanted := b.settings.HotUpgrade.StandbyRequests
	cost := fmt.Sprintf("the idle slot requests as much as the one that serves, cpu %s and memory %s", full.Requests.Cpu(), full.Requests.Memory())
	switch {
	case wanted != nil && *wanted == profile.StandbySame:
		return full
	case !b.env.Resize:
		b.warn("%s: not every node can change the resources of a running pod (Kubernetes 1.33)", cost)
		return full
	case guaranteed(full): // what it would become may make the pod's class another, which Kubernetes refuses
		b.warn("%s: with requests equal to limits they cannot be changed in the running pod", cost)
		return full
	}
	small := full
	small.Requests = full.Requests.DeepCopy()
	for name, idle := range map[corev1.ResourceName]string{corev1.ResourceCPU: idleCPU, corev1.ResourceMemory: idleMemory} {
		if least := resource.MustParse(idle); least.Cmp(small.Requests[name]) < 0 {
			small.Requests[name] = least
		}
	}
	return small
}

func guaranteed(r corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, ok := r.Limits[name]
		if !ok || limit.Cmp(r.Requests[name]) != 0 {
			return false
		}
	}
	return true
}

// withRequests adds the requests that are missing: without one of a container a HorizontalPodAutoscaler has no number for the pod.
func withRequests(r *corev1.ResourceRequirements) *corev1.ResourceRequirements {
	out := r.DeepCopy()
	if out.Requests == nil {
		out.Requests = corev1.ResourceList{}
	}
	for name, least := range map[corev1.ResourceName]string{corev1.ResourceCPU: idleCPU, corev1.ResourceMemory: idleMemory} {
		if _, ok := out.Requests[name]; ok {
			continue
		}
		out.Requests[name] = resource.MustParse(least)
		if limit, ok := out.Limits[name]; ok {
			out.Requests[name] = limit // Kubernetes' default
		}
	}
	return out
}
