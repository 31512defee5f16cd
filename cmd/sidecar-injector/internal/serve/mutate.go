package serve

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/inject/webhook"
	"understudy.mesh/pkg/profile"
)

// freshLimit is how long a second look at a namespace may take: the API server is waiting for the answer.
const freshLimit = time.Second

// mutate says what becomes of a pod, by what the caches know.
func (c *caches) mutate(ctx context.Context, r webhook.Request) (webhook.Result, error) {
	read, err := inject.Read(r.Pod)
	if err != nil {
		return webhook.Result{}, err
	}
	pod := read.Object
	if pod.Kind != "" && pod.Kind != "Pod" {
		return webhook.Result{}, fmt.Errorf("the object is a %s, want a Pod", pod.Kind)
	}
	name := r.Namespace
	if name == "" {
		name = pod.Namespace
	}
	policy, err := c.policy()
	if err != nil {
		return webhook.Result{}, err
	}
	namespace, verdict, err := c.decide(ctx, policy.inject, name, pod)
	if err != nil {
		return webhook.Result{}, err
	}
	if !verdict.Inject {
		return webhook.Result{Rule: verdict.Rule, Warnings: verdict.Warnings}, nil
	}
	settings, warnings, err := c.settings(name, pod)
	warnings = append(verdict.Warnings, warnings...)
	if err != nil {
		return webhook.Result{}, err
	}
	modern := c.nodes.all()
	patch, more, err := read.Patch(settings, inject.Environment{
		Namespace: namespace, Native: modern, Resize: modern, Variables: variables(r.Path),
		IstioVersion: c.istiods.oldest(*settings.ControlPlane.DiscoveryAddress),
	})
	if err != nil {
		return webhook.Result{}, err
	}
	return webhook.Result{Patch: patch, Rule: "injected-already", Warnings: append(warnings, more...)}, nil
}

// decide asks for the verdict. Where it is no for what the namespace says, the copy of the namespace may be older than what the API
// server went by when it asked: a namespace is labelled, and its first pod made in the same moment. Then the API server is asked.
func (c *caches) decide(ctx context.Context, policy inject.Policy, name string, pod *corev1.Pod) (inject.Namespace, inject.Verdict, error) {
	namespace := inject.Namespace{Name: name}
	known := get[metav1.PartialObjectMetadata](c.namespaces, name)
	if known != nil {
		namespace.Labels, namespace.Annotations = known.Labels, known.Annotations
	}
	verdict := inject.Decide(policy, namespace, pod)
	switch verdict.Rule {
	case "other-revision", "namespace-disabled", "namespace-not-selected":
	default:
		if known != nil {
			return namespace, verdict, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, freshLimit)
	defer cancel()
	fresh, err := c.metadata.Resource(namespacesResource).Get(ctx, name, metav1.GetOptions{})
	switch {
	case err != nil && known == nil:
		return namespace, verdict, fmt.Errorf("read namespace %s: %w", name, err)
	case err != nil:
		c.log.Warn("the namespace could not be read again", "namespace", name, "err", err)
		return namespace, verdict, nil
	}
	namespace.Labels, namespace.Annotations = fresh.Labels, fresh.Annotations
	return namespace, inject.Decide(policy, namespace, pod), nil
}

// settings are those of a pod.
func (c *caches) settings(namespace string, pod *corev1.Pod) (*profile.Settings, []string, error) {
	base, err := c.profiles.base(namespace)
	if err != nil {
		return nil, nil, err
	}
	return inject.Settings(pod, base)
}

// variables are those of the URL's path, cluster/X/net/Y, as Istio has them: "--slash--" stands for a slash.
func variables(path string) map[string]string {
	known := map[string]string{"cluster": "ISTIO_META_CLUSTER_ID", "net": "ISTIO_META_NETWORK"}
	parts := strings.Split(path, "/")
	found := make(map[string]string)
	for i := 0; i+1 < len(parts); i += 2 {
		name, ok := known[parts[i]]
		if !ok {
			name = strings.ToUpper(parts[i])
		}
		found[name] = strings.ReplaceAll(parts[i+1], "--slash--", "/")
	}
	return found
}
