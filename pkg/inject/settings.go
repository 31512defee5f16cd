package inject

import (
	"errors"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/profile"
)

// Settings are what a pod is injected with, by its annotations and by layers below them, the most specific first. All that is wrong
// with them is in err.
func Settings(pod *corev1.Pod, layers []profile.Layer) (settings *profile.Settings, warnings []string, err error) {
	own, warnings, err := profile.FromAnnotations(userAnnotations(pod.Annotations))
	settings = profile.Resolve(append(own, layers...)...)
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = *s
	}
	more, wrong := settings.Check(grace)
	return settings, append(warnings, more...), errors.Join(err, wrong)
}
