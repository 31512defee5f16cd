package serve

import (
	"sync"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/inject/webhook"
	"understudy.mesh/pkg/profile"
)

// policy is what the mesh's settings say about which pods are injected.
type policy struct {
	inject  inject.Policy
	webhook webhook.Options // what depends on the settings
}

// policies keeps the last one that was made: it is asked for with each pod, and changes once a month.
type policies struct {
	mu   sync.Mutex
	spec *profile.Spec
	made *policy
}

// policy is the mesh's. It is an error as long as that is not known: what a replica that has just started does not know yet must
// not pass for what nobody wants.
func (c *caches) policy() (policy, error) {
	if err := c.synced(); err != nil {
		return policy{}, err
	}
	spec, err := c.profiles.mesh()
	if err != nil {
		return policy{}, err
	}
	c.policies.mu.Lock()
	defer c.policies.mu.Unlock()
	if c.policies.made == nil || c.policies.spec != spec {
		made := newPolicy(spec, c.options)
		c.policies.spec, c.policies.made = spec, &made
	}
	return *c.policies.made, nil
}

func newPolicy(spec *profile.Spec, o Options) policy {
	injection := profile.Resolve(profile.Layer{Source: profile.SourceMesh, Spec: spec}).Injection
	return policy{
		inject: inject.Policy{Injection: *injection, Tags: o.Tags, Namespace: o.Namespace},
		webhook: webhook.Options{
			Namespace: o.Namespace, Revisions: append([]string{contract.Revision}, o.Tags...),
			AllNamespaces: *injection.EnableNamespacesByDefault, Paused: *injection.Paused,
			OnlyAsked: !*injection.AutoInjectByAnnotation && len(injection.AlwaysInjectSelector) == 0,
		},
	}
}
