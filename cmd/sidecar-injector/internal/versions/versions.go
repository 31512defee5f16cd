// Package versions owns what runs in the pods of a cluster: each agent's own word, and the images that the kubelets report.
package versions

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"understudy.mesh/pkg/contract"

	"understudy.mesh/cmd/sidecar-injector/internal/cluster"
)

// Generation is what serves connections in a pod: an agent with its Envoy. While one drains, a pod has two.
type Generation struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	Role      string `json:"role,omitempty"` // serving, draining
	Agent     string `json:"agent,omitempty"`
	Envoy     string `json:"envoy,omitempty"`
	// Image and Digest are of the slot that serves, as the kubelet says; of one that drains they are not known.
	Image  string `json:"image,omitempty"`
	Digest string `json:"digest,omitempty"`
	// Unknown is why the agent's word could not be had.
	Unknown string `json:"unknown,omitempty"`
	// Below says which version is too low, or that it is not known.
	Below string `json:"below,omitempty"`
}

// Limits are the lowest versions that are right; nil: any is.
type Limits struct{ Agent, Envoy *version.Version }

// Ask asks a pod for a page of its agent.
type Ask func(ctx context.Context, pod *corev1.Pod, port int, path string) ([]byte, error)

// asking is how many pods are asked at once.
const asking = 32

// Of asks the agents of all pods that have one, and returns what they say by namespace and pod.
func Of(ctx context.Context, c *cluster.Cluster, namespace string, ask Ask, limits Limits) ([]Generation, error) {
	pods, err := c.Pods(ctx, namespace)
	if err != nil {
		return nil, err
	}
	pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool { return len(slots(p)) == 0 })
	found := make([][]Generation, len(pods))
	places := make(chan struct{}, asking)
	var group sync.WaitGroup
	for i, pod := range pods {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			found[i] = of(ctx, pod, ask)
		})
	}
	group.Wait()
	all := slices.Concat(found...)
	for i := range all {
		all[i].Below = limits.below(all[i])
	}
	slices.SortStableFunc(all, func(a, b Generation) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Pod, b.Pod))
	})
	return all, ctx.Err()
}

// of is what one pod says.
func of(ctx context.Context, pod *corev1.Pod, ask Ask) []Generation {
	g := Generation{Namespace: pod.Namespace, Pod: pod.Name}
	slot := serving(pod)
	g.Image = slot.Image
	for _, s := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if s.Name == slot.Name {
			g.Digest = digest.FindString(s.ImageID)
		}
	}
	status, err := upgradeStatus(ctx, pod, ask)
	if err != nil {
		g.Unknown = cmp.Or(strings.Join(strings.Fields(err.Error()), " "), "no answer")
		return []Generation{g}
	}
	var found []Generation
	for _, said := range status.Generations {
		if said.Role == "standby" {
			continue // it has no Envoy, and serves nobody
		}
		one := g
		one.Role, one.Agent, one.Envoy, one.Unknown = said.Role, said.AgentVersion, said.EnvoyVersion, said.Error
		if one.Role == "draining" {
			one.Image, one.Digest = "", ""
		}
		found = append(found, one)
	}
	if len(found) == 0 {
		g.Unknown = "no generation serves"
		found = append(found, g)
	}
	return found
}

var digest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// upgradeStatus is the word of a pod's agents.
func upgradeStatus(ctx context.Context, pod *corev1.Pod, ask Ask) (status contract.UpgradeStatus, err error) {
	if pod.Status.Phase != corev1.PodRunning {
		return status, fmt.Errorf("the pod is %s", cmp.Or(string(pod.Status.Phase), "not scheduled"))
	}
	text, err := ask(ctx, pod, statusPort(pod), contract.UpgradePath)
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	return status, err
}

// kruiseVersion is the annotation in which OpenKruise counts the versions of a container.
const kruiseVersion = "version.sidecarset.kruise.io/"

// kruiseSlots are the containers that OpenKruise makes of one named istio-proxy.
var kruiseSlots = []string{contract.ProxyContainer + "-1", contract.ProxyContainer + "-2"}

// slots are the containers of a pod that an agent may run in.
func slots(pod *corev1.Pod) (found []corev1.Container) {
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == contract.ProxyContainer || c.Name == contract.SecondContainer || slices.Contains(kruiseSlots, c.Name) {
			found = append(found, c)
		}
	}
	return found
}

// serving is the slot whose turn it is: that of the highest version.
func serving(pod *corev1.Pod) corev1.Container {
	number := func(c corev1.Container) int {
		n, _ := strconv.Atoi(cmp.Or(pod.Annotations[contract.VersionAnnotation+c.Name], pod.Annotations[kruiseVersion+c.Name])) // 0 without one
		return n
	}
	return slices.MaxFunc(slots(pod), func(a, b corev1.Container) int { return cmp.Compare(number(a), number(b)) })
}

// statusPort is where the pod's agent serves.
func statusPort(pod *corev1.Pod) int {
	for _, c := range slots(pod) {
		for i, arg := range c.Args {
			value, ok := strings.CutPrefix(arg, "--statusPort=")
			if arg == "--statusPort" && i+1 < len(c.Args) {
				value, ok = c.Args[i+1], true
			}
			if port, err := strconv.Atoi(value); ok && err == nil {
				return port
			}
		}
	}
	return contract.StatusPort
}

// below says which version of a generation is too low.
func (l Limits) below(g Generation) string {
	for _, v := range []struct {
		what, text string
		limit      *version.Version
	}{{"agent", g.Agent, l.Agent}, {"Envoy", g.Envoy, l.Envoy}} {
		if v.limit == nil {
			continue
		}
		has, err := Parse(v.text)
		switch {
		case g.Unknown != "":
			return "not known: " + g.Unknown
		case err != nil:
			return fmt.Sprintf("%s %q is no release", v.what, v.text)
		case has.LessThan(v.limit):
			return v.what + " " + v.text
		}
	}
	return ""
}

var semantic = regexp.MustCompile(`^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?`)

// Parse reads a version, such as v1.2.3; what is behind it does not count (1.40.0/Clean).
func Parse(text string) (*version.Version, error) {
	found := semantic.FindString(text)
	if found == "" {
		return nil, fmt.Errorf("%.64q: want a version, such as v1.2.3", text)
	}
	return version.ParseSemantic(found)
}
