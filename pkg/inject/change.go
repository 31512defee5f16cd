package inject

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Change is what a new pod would have otherwise than one that runs.
type Change string

// What may be otherwise.
const (
	NoChange       Change = ""
	ChangeInject   Change = "inject"   // it is not injected, and would be
	ChangeLeave    Change = "leave"    // it is injected, and would not be
	ChangeInjector Change = "injector" // another injector's, and would be ours
	ChangeImage    Change = "image"    // the proxy's image
	ChangeSettings Change = "settings" // anything else
)

// Change compares a pod that runs with what its template, the receiver, would become now. A pod that was given the proxy's image in place is as one
// that was made with it.
func (pod *Pod) Change(running *corev1.Pod, verdict Verdict, s *profile.Settings, env Environment) (Change, error) {
	has, foreign := readStatus(running.Annotations)
	var want *recorded
	var err error
	if verdict.Inject {
		var record recorded
		if record, err = newBuilder(pod.view, s, env.of(has)).record(); err != nil {
			return NoChange, err
		}
		want = &record
	} else if want, err = readStatus(pod.Object.Annotations); err != nil {
		return NoChange, nil // the template is another injector's, and stays so
	}
	switch {
	case foreign != nil && want != nil:
		return ChangeInjector, nil
	case foreign != nil || has == nil && want == nil:
		return NoChange, nil
	case has == nil:
		return ChangeInject, nil
	case want == nil:
		return ChangeLeave, nil
	case has.Hash != want.Hash:
		return ChangeSettings, nil
	case !has.runs(want.Image, running):
		return ChangeImage, nil
	}
	return NoChange, nil
}

// of is the environment of a pod that was injected before: nobody here knows the webhook's URL, which that has recorded.
func (env Environment) of(earlier *recorded) Environment {
	if env.Variables == nil && earlier != nil {
		env.Variables = earlier.Variables
	}
	return env
}

// runs reports whether a pod has an image. What counts is what the injection has put there: others may have rewritten it, to a mirror's name
// for one. After an upgrade in place it is what the slots have now.
func (r *recorded) runs(image string, running *corev1.Pod) bool {
	if !upgraded(running.Annotations) {
		return r.Image == image
	}
	has := func(c corev1.Container) bool { return isSlot(c.Name) && c.Image == image }
	return slices.ContainsFunc(running.Spec.Containers, has) || slices.ContainsFunc(running.Spec.InitContainers, has)
}

// upgraded reports whether slots have been given another version than the first.
func upgraded(annotations map[string]string) bool {
	for name, value := range annotations {
		version, err := strconv.Atoi(value)
		if strings.HasPrefix(name, contract.VersionAnnotation) && err == nil && version > 1 {
			return true
		}
	}
	return false
}
