package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// fieldManager is whose the fields are that the commands write.
const fieldManager = "sidecar-injector"

// Patch merges fields into an owner (RFC 7396).
func (c *Cluster) Patch(ctx context.Context, owner *Owner, fields any) error {
	kind, err := kindOf(owner)
	var body []byte
	if err == nil {
		body, err = json.Marshal(fields)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		_, err = answer(c.client.Patch(types.MergePatchType).AbsPath(escaped(append(kind.path(owner.Namespace), owner.Name))...).
			Param("fieldManager", fieldManager).Body(body).Do(ctx))
	}
	if err != nil {
		return fmt.Errorf("patch %s %s/%s: %w", owner.Kind, owner.Namespace, owner.Name, err)
	}
	return nil
}

// Evict asks for a pod to go, which its PodDisruptionBudgets may forbid for now: then held says why. A pod that is gone, or has been made
// anew under its name, is no error.
func (c *Cluster) Evict(ctx context.Context, pod *corev1.Pod) (held string, err error) {
	body, err := json.Marshal(&policyv1.Eviction{
		TypeMeta:      metav1.TypeMeta{APIVersion: "policy/v1", Kind: "Eviction"},
		ObjectMeta:    metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(pod.UID))},
	})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, answerLimit)
		defer cancel()
		path := append(workloadKind{version: "v1", resource: "pods"}.path(pod.Namespace), url.PathEscape(pod.Name), "eviction")
		_, err = answer(c.client.Post().MaxRetries(0).AbsPath(path...).SetHeader("Content-Type", "application/json").Body(body).Do(ctx))
	}
	switch {
	case apierrors.IsTooManyRequests(err):
		return reason(err), nil
	case err == nil, apierrors.IsNotFound(err), apierrors.IsConflict(err):
		return "", nil
	}
	return "", fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
}

// reason is what the API server says, with its causes: which PodDisruptionBudget it is.
func reason(err error) string {
	parts := []string{strings.TrimSuffix(err.Error(), ".")}
	var said apierrors.APIStatus
	if errors.As(err, &said) && said.Status().Details != nil {
		for _, cause := range said.Status().Details.Causes {
			parts = append(parts, cause.Message)
		}
	}
	return strings.Join(parts, ": ")
}
