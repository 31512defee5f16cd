package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"understudy.mesh/pkg/inject/webhook"
	"understudy.mesh/pkg/profile"
)

var deploymentsResource = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}

// injectorOf is what a mesh's settings say of the injector's Deployment; nil is nothing.
func injectorOf(s *profile.Spec) *profile.Injector {
	if s == nil || s.Injector == nil {
		return nil
	}
	i := s.Injector
	if i.ReplicaCount == nil && i.NodeSelector == nil && i.Resources == nil {
		return nil
	}
	return i
}

// managed reports whether they are applied. Otherwise the Deployment is the chart's alone.
func managed(i *profile.Injector) bool { return i.Manage != nil && *i.Manage }

// keepDeployment applies them. It does so once: who changes the Deployment by hand meant it.
func (k *keeper) keepDeployment(ctx context.Context) error {
	spec, err := k.caches.profiles.mesh()
	if err != nil {
		return nil // keepConfiguration has said so
	}
	i := injectorOf(spec)
	if i == nil || !managed(i) {
		return nil
	}
	object, err := deployment(i, k.options.Namespace)
	if err != nil {
		return err
	}
	text, err := json.Marshal(object)
	if err != nil || bytes.Equal(text, k.deployment) {
		return err
	}
	_, err = k.client.Resource(deploymentsResource).Namespace(k.options.Namespace).
		Apply(ctx, webhook.Name, object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("apply spec.injector to the Deployment %s/%s: %w", k.options.Namespace, webhook.Name, err)
	}
	k.deployment = text
	k.log.Info("spec.injector applied", "deployment", webhook.Name)
	return nil
}

// deployment is what to apply: the fields that are set, and no other.
func deployment(i *profile.Injector, namespace string) (*unstructured.Unstructured, error) {
	spec, pod := map[string]any{}, map[string]any{}
	if i.ReplicaCount != nil {
		spec["replicas"] = int64(*i.ReplicaCount)
	}
	if i.NodeSelector != nil {
		selector := make(map[string]any, len(i.NodeSelector))
		for key, value := range i.NodeSelector {
			selector[key] = value
		}
		pod["nodeSelector"] = selector
	}
	if i.Resources != nil {
		resources, err := runtime.DefaultUnstructuredConverter.ToUnstructured(i.Resources)
		if err != nil {
			return nil, fmt.Errorf("write spec.injector.resources: %w", err)
		}
		pod["containers"] = []any{map[string]any{"name": webhook.Name, "resources": resources}}
	}
	if len(pod) > 0 {
		spec["template"] = map[string]any{"spec": pod}
	}
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}}
	object.SetName(webhook.Name)
	object.SetNamespace(namespace)
	return object, nil
}
