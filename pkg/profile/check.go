package profile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Check says what is wrong with settings as a whole, and what may surprise. graceSeconds is how long the pod may take to end.
func (s *Settings) Check(graceSeconds int64) (warnings []string, err error) {
	var all []error
	wrong := func(field, format string, args ...any) {
		all = append(all, fmt.Errorf("%s (%s): %s", field, s.sourceOf(field), fmt.Sprintf(format, args...)))
	}
	warn := func(field, format string, args ...any) {
		warnings = append(warnings, fmt.Sprintf("%s (%s): %s", field, s.sourceOf(field), fmt.Sprintf(format, args...)))
	}
	if s.Proxy.Image == nil {
		wrong("proxy.image", "nobody has set it: set spec.proxy.image")
	}
	if *s.ControlPlane.Mode == ModeFiles && *s.ControlPlane.ConfigMap == "" {
		wrong("controlPlane.mode", "files needs a ConfigMap: set controlPlane.configMap to one of each namespace")
	}
	if l := s.Proxy.Lifecycle; l != nil && s.Hot() {
		if !isWait(l.PostStart) {
			wrong("proxy.lifecycle", `with hotUpgrade, postStart must be the command "pilot-agent wait": a slot must not start the application before one of them serves`)
		}
		if l.PreStop != nil {
			warn("proxy.lifecycle", "preStop runs in both slots, also in the one that is replaced in an upgrade")
		}
	}
	if drain := s.Proxy.TerminationDrainDuration.Duration; drain > time.Duration(graceSeconds)*time.Second {
		warn("proxy.terminationDrainDuration", "%s is more than the pod's terminationGracePeriodSeconds, %d: Kubernetes ends the pod first", drain, graceSeconds)
	}
	return warnings, errors.Join(all...)
}

func (s *Settings) sourceOf(field string) string {
	if source := s.sources[field]; source != "" {
		return source
	}
	return "not set"
}

// isWait reports whether a hook is the agent's wait, directly or by a shell, with whatever flags.
func isWait(h *corev1.LifecycleHandler) bool {
	if h == nil || h.Exec == nil {
		return false
	}
	words := strings.Fields(strings.Join(h.Exec.Command, " "))
	for i, word := range words {
		if strings.HasSuffix(word, "pilot-agent") && slices.Contains(words[i+1:], "wait") {
			return true
		}
	}
	return false
}
