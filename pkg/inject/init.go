package inject

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Names of the container that programs capture, and of the one that checks what istio-cni has programmed.
const (
	initName       = "istio-init"
	validationName = "istio-validation"
)

// initContainer is what runs before the application to capture its traffic; nil if nothing is captured.
func (b *builder) initContainer() *corev1.Container {
	s := b.settings
	if *s.Capture.Mode == profile.None {
		return nil
	}
	c := &corev1.Container{
		Name: initName, Image: *s.Init.Image, ImagePullPolicy: *s.Proxy.ImagePullPolicy,
		Args: b.captureArgs(), Env: b.sharedEnv(), Resources: *s.Init.Resources,
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), RunAsNonRoot: new(false),
			Privileged: new(false), AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem: new(false), // the lock of iptables, /run/xtables.lock
			Capabilities:           &corev1.Capabilities{Add: []corev1.Capability{"NET_ADMIN", "NET_RAW"}, Drop: []corev1.Capability{"ALL"}},
			SeccompProfile:         b.seccomp(),
		},
	}
	if *s.Init.CNI {
		c.Name = validationName
		c.Args = append(c.Args, "--run-validation", "--skip-rule-apply")
		c.SecurityContext = b.unprivileged()
	}
	return c
}

// captureArgs are in the order of ASM's manual: who compares finds them the same.
func (b *builder) captureArgs() []string {
	c := b.settings.Capture
	args := []string{
		"istio-iptables", "-p", strconv.Itoa(contract.OutboundPort), "-z", strconv.Itoa(contract.InboundPort),
		"-u", strconv.FormatInt(b.uid, 10),
	}
	if b.gid != b.uid { // -u is for both
		args = append(args, "-g", strconv.FormatInt(b.gid, 10))
	}
	args = append(args,
		"-m", string(*c.Mode),
		"-i", strings.Join(c.IncludeOutboundIPRanges, ","), "-x", strings.Join(c.ExcludeOutboundIPRanges, ","),
		"-b", join(c.IncludeInboundPorts), "-d", join(c.ExcludeInboundPorts),
	)
	for _, optional := range [][2]string{
		{"-o", join(c.ExcludeOutboundPorts)},
		{"-q", join(c.IncludeOutboundPorts)},
		{"-k", strings.Join(c.RerouteVirtualInterfaces, ",")},
		{"-c", strings.Join(c.ExcludeInterfaces, ",")},
	} {
		if optional[1] != "" {
			args = append(args, optional[0], optional[1])
		}
	}
	return args
}

func join(ports []intstr.IntOrString) string {
	words := make([]string, len(ports))
	for i, port := range ports {
		words[i] = port.String()
	}
	return strings.Join(words, ",")
}

// warnOfNamespace says what a namespace's Pod Security refuses, which says it of the whole pod only.
func (b *builder) warnOfNamespace() {
	enforced := b.env.Namespace.Labels["pod-security.kubernetes.io/enforce"]
	if !slices.Contains([]string{"baseline", "restricted"}, enforced) {
		return
	}
	mode := *b.settings.Capture.Mode
	switch {
	case mode == profile.TProxy:
		b.warn("namespace %s enforces Pod Security %s, which refuses %s: TPROXY needs NET_ADMIN", b.env.Namespace.Name, enforced, contract.ProxyContainer)
	case mode == profile.Redirect && !*b.settings.Init.CNI:
		b.warn("namespace %s enforces Pod Security %s, which refuses %s: it needs NET_ADMIN and NET_RAW; use istio-cni, and set init.cni: true", b.env.Namespace.Name, enforced, initName)
	}
}
