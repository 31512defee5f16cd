package inject

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Outdated says what a pod that was injected with an image has otherwise than a new pod would get it by these settings, the image
// aside: the field of the proxy's container, or "settings" for all else. "" is that it is up to date, or was not injected by us.
func (pod *Pod) Outdated(s *profile.Settings, env Environment, image string) (field string, err error) {
	p := pod.view
	earlier, err := readStatus(p.Metadata.Annotations)
	if err != nil || earlier == nil {
		return "", err
	}
	b := newBuilder(p, s.WithImage(image), env.of(earlier))
	hash, err := b.hash()
	if err != nil || hash == earlier.Hash {
		return "", err
	}
	b.earlier = earlier
	if known, err := b.recall(); err == nil {
		b.rewriteProbes(known)
	}
	b.findIDs()
	live, err := p.liveContainer(contract.ProxyContainer)
	if err != nil {
		return "", err
	}
	if want := b.proxy(contract.ProxyContainer); live != nil {
		if field := differing(live, want); field != "" {
			return "container " + contract.ProxyContainer + ", " + field, nil
		}
	}
	return "settings", nil
}

// liveContainer is one of the pod's as it is; nil if there is none.
func (p *podView) liveContainer(name string) (*corev1.Container, error) {
	t, err := p.tree()
	if err != nil {
		return nil, err
	}
	for _, c := range slices.Concat(t.Spec.Containers, t.Spec.InitContainers) {
		if c["name"] != name {
			continue
		}
		text, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("read container %s: %w", name, err)
		}
		live := new(corev1.Container)
		if err := json.Unmarshal(text, live); err != nil {
			return nil, fmt.Errorf("read container %s: %w", name, err)
		}
		return live, nil
	}
	return nil, nil
}

// differing is the first field in which a container that the API server has completed is not as it is wanted.
func differing(live, want *corev1.Container) string {
	if !slices.Equal(live.Args, want.Args) {
		return "args"
	}
	for _, variable := range want.Env {
		at := slices.IndexFunc(live.Env, func(e corev1.EnvVar) bool { return e.Name == variable.Name })
		if at < 0 || variable.ValueFrom == nil && !sameText(live.Env[at].Value, variable.Value) {
			return "env " + variable.Name
		}
	}
	for _, e := range live.Env {
		if !slices.ContainsFunc(want.Env, func(v corev1.EnvVar) bool { return v.Name == e.Name }) {
			return "env " + e.Name
		}
	}
	if asJSON(live.Resources.Limits) != asJSON(want.Resources.Limits) {
		return "resources"
	}
	return ""
}
