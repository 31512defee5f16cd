package restart

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
	"understudy.mesh/cmd/sidecar-injector/internal/compare"
	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// Settings say what a pod would get if it were made now.
type Settings struct {
	Profiles  *offline.Profiles
	Namespace inject.Namespace
	// Modern is that every node has a kubelet as [inject.ParseKubelet] says.
	Modern bool
}

// difference says how a pod that runs differs from what its owner would make now; "" if it does not. An error is why that would be refused.
func (s Settings) difference(owner *cluster.Owner, pod *corev1.Pod) (string, error) {
	template := owner.Template
	verdict := inject.Decide(s.Profiles.Policy(), s.Namespace, template.Pod)
	settings, _, err := inject.Settings(template.Pod, s.Profiles.Base(s.Namespace.Name))
	if err != nil && verdict.Inject {
		return "", err
	}
	change, err := template.Change(pod, verdict, settings, s.Namespace, s.Modern)
	if err != nil || change == inject.NoChange {
		return "", err
	}
	switch change {
	case inject.ChangeInject:
		return "it is not injected, and would be (" + verdict.Rule + ")", nil
	case inject.ChangeLeave:
		return "it is injected, and would not be (" + verdict.Rule + ")", nil
	case inject.ChangeInjector:
		return "another injector's, and would be ours (" + verdict.Rule + ")", nil
	}
	if !verdict.Inject { // by hand, and its template has changed since
		return "its template is injected otherwise", nil
	}
	made, _, err := template.Patched(settings, s.Namespace, s.Modern)
	if err != nil {
		return "", err
	}
	if change == inject.ChangeImage {
		return "image " + image(pod, settings) + " -> " + *settings.Proxy.Image, nil
	}
	fields, err := compare.Containers(pod, made)
	if err != nil {
		return "", err
	}
	if owner.Kind == "UnitedDeployment" { // a pod is named after the workload of its subset
		fields = slices.DeleteFunc(fields, func(d compare.Difference) bool { return ownerVariable.MatchString(d.Field) })
	}
	return shortened(fields), nil
}

// ownerVariable is a variable that names what makes a pod.
var ownerVariable = regexp.MustCompile(`\.env\[ISTIO_META_(OWNER|WORKLOAD_NAME)\]`)

// image is the one of a pod's proxy; a slot that idles has another one.
func image(pod *corev1.Pod, s *profile.Settings) string {
	image := ""
	for _, c := range slices.Concat(pod.Spec.Containers, pod.Spec.InitContainers) {
		idles := s.Hot() && c.Image == *s.HotUpgrade.EmptyImage
		if (c.Name == contract.ProxyContainer || c.Name == contract.SecondContainer) && (image == "" || !idles) {
			image = c.Image
		}
	}
	return image
}

// shownFields is how many fields a reason has: it is one line.
const shownFields = 3

// shortened are the fields of differences on one line.
func shortened(all []compare.Difference) string {
	var fields []string
	for _, d := range all {
		fields = append(fields, d.Field)
	}
	switch n := len(fields); {
	case n == 0: // in volumes or metadata alone, or in what another release makes of the same
		return "settings"
	case n > shownFields:
		return fmt.Sprintf("%s and %d more fields", strings.Join(fields[:shownFields], ", "), n-shownFields)
	}
	return strings.Join(fields, ", ")
}

// plans are what is to be done to the workloads of a namespace; those with nothing to do are counted only.
func (s Settings) plans(ctx context.Context, c *cluster.Cluster, all bool) (plans []*plan, same int, err error) {
	owners, err := c.Owners(ctx, s.Namespace.Name)
	if err != nil {
		return nil, 0, err
	}
	for _, owner := range owners {
		p, err := s.plan(owner, all)
		if err != nil {
			return nil, 0, err
		}
		if len(p.old) == 0 && p.skip == "" {
			same++
			continue
		}
		plans = append(plans, p)
	}
	return plans, same, nil
}

func (s Settings) plan(owner *cluster.Owner, all bool) (*plan, error) {
	p := s.compare(owner)
	if all && p.stale == 0 && p.skip == "" {
		p.reason = "--all"
		for _, pod := range owner.Pods {
			p.old[pod.UID] = true
		}
	}
	if len(p.old) == 0 || p.skip != "" {
		return p, nil
	}
	if err := p.decide(); err != nil {
		return nil, err
	}
	if p.way == byTemplate || p.way == byRestartAt { // all of them go
		for _, pod := range owner.Pods {
			p.old[pod.UID] = true
		}
	}
	return p, nil
}

// compare finds the pods that differ, and why.
func (s Settings) compare(owner *cluster.Owner) *plan {
	p := &plan{owner: owner, old: make(map[types.UID]bool)}
	reasons := map[string]int{}
	for _, pod := range owner.Pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		reason, err := s.difference(owner, pod)
		if err != nil {
			p.skip = "a new pod would be refused: " + strings.ReplaceAll(err.Error(), "\n", "; ")
			return p
		}
		if reason != "" {
			p.old[pod.UID] = true
			reasons[reason]++
		}
	}
	p.stale = len(p.old)
	most := slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return cmp.Or(reasons[b]-reasons[a], strings.Compare(a, b)) })
	if len(most) > 0 {
		p.reason = most[0]
	}
	if len(most) > 1 {
		p.reason += fmt.Sprintf(", of others %s", most[1])
	}
	return p
}
