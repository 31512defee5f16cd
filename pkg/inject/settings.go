package inject

import (
	"errors"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/profile"
)

// Settings are what a pod is injected with, by its annotations and by the base below them. All that is wrong with them is in err.
func Settings(pod *corev1.Pod, base *profile.Base) (settings *profile.Settings, warnings []string, err error) {
	own, warnings, err := profile.FromAnnotations(userAnnotations(pod.Annotations))
	settings = base.Resolve(own...)
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = *s
	}
	more, wrong := settings.Check(grace)
	return settings, append(warnings, more...), errors.Join(err, wrong)
}
