package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// Owner is what makes pods: the Deployment, not its ReplicaSet. A pod that nobody makes is its own, and of a kind that is not known here
// there is no more than the name.
type Owner struct {
	APIVersion, Kind, Namespace, Name string
	// Text is the object as JSON; nil: it is of no known kind.
	Text []byte
	// Template has the pod template, which may be another object's. Where none is known it is the first pod, as if that were made again.
	Template offline.Workload
	// Pods are those that have not ended, by name.
	Pods []*corev1.Pod

	uid types.UID
}

// String is the owner's name as kubectl takes it.
func (o *Owner) String() string {
	if group, _, ok := strings.Cut(o.APIVersion, "/"); ok && group != "apps" && group != "batch" {
		return o.Kind + "." + group + "/" + o.Name
	}
	return o.Kind + "/" + o.Name
}

// Known reports whether the owner is an object of which more than the name is known.
func (o *Owner) Known() bool { return o.Text != nil }

// Owners are those of a namespace's pods, or with "" of everybody's, by namespace, kind and name.
func (c *Cluster) Owners(ctx context.Context, namespace string) ([]*Owner, error) {
	pods, err := c.pods(ctx, namespace, "")
	if err != nil {
		return nil, err
	}
	known, err := c.makers(ctx, namespace, pods)
	if err != nil {
		return nil, err
	}
	byUID := map[types.UID]*Owner{}
	for _, pod := range pods {
		owner := ownerOf(pod, known)
		if byUID[owner.uid] == nil {
			byUID[owner.uid] = owner
		}
		byUID[owner.uid].Pods = append(byUID[owner.uid].Pods, pod)
	}
	var all []*Owner
	for _, owner := range byUID {
		slices.SortFunc(owner.Pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
		if err := c.template(ctx, owner); err != nil {
			return nil, fmt.Errorf("read the pod template of %s %s/%s: %w", owner.Kind, owner.Namespace, owner.Name, err)
		}
		all = append(all, owner)
	}
	slices.SortFunc(all, func(a, b *Owner) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name), strings.Compare(a.APIVersion, b.APIVersion))
	})
	return all, nil
}

// Pods are a namespace's, or with "" everybody's, that have not ended.
func (c *Cluster) Pods(ctx context.Context, namespace string) ([]*corev1.Pod, error) {
	return c.pods(ctx, namespace, "")
}

// pods are those of Pods that have labels.
func (c *Cluster) pods(ctx context.Context, namespace, labels string) ([]*corev1.Pod, error) {
	var all []*corev1.Pod
	err := c.list(ctx, selection{labels: labels}, func(text []byte) error {
		pod := new(corev1.Pod)
		if err := json.Unmarshal(text, pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
			pod.Kind, pod.APIVersion = "Pod", "v1"
			pod.ManagedFields = nil
			all = append(all, pod)
		}
		return nil
	}, workloadKind{version: "v1", resource: "pods"}.path(namespace)...)
	if err != nil {
		return nil, fmt.Errorf("read the pods of %s: %w", place(namespace), err)
	}
	return all, nil
}

func place(namespace string) string {
	if namespace == "" {
		return "all namespaces"
	}
	return "namespace " + namespace
}

// made is an object that makes pods.
type made struct {
	kind     workloadKind
	metadata metav1.ObjectMeta
	text     []byte
}

// makers are the objects behind pods, by their UIDs. Only the kinds that pods or ReplicaSets name are asked for.
func (c *Cluster) makers(ctx context.Context, namespace string, pods []*corev1.Pod) (map[types.UID]made, error) {
	known := map[types.UID]made{}
	wanted := map[string]bool{}
	want := func(of *metav1.OwnerReference) {
		if of != nil {
			group, _, _ := strings.Cut(of.APIVersion, "/")
			wanted[group+"/"+of.Kind] = true
		}
	}
	for _, pod := range pods {
		want(metav1.GetControllerOf(pod))
	}
	if wanted["apps/ReplicaSet"] {
		if err := c.readMakers(ctx, namespace, replicaSets, known); err != nil {
			return nil, err
		}
		for _, set := range known {
			want(metav1.GetControllerOf(&set.metadata))
		}
	}
	for _, kind := range makers {
		if group, _, _ := strings.Cut(kind.apiVersion(), "/"); !wanted[group+"/"+kind.kind] {
			continue
		}
		if err := c.readMakers(ctx, namespace, kind, known); err != nil {
			return nil, err
		}
		for _, m := range known {
			want(metav1.GetControllerOf(&m.metadata))
		}
	}
	return known, nil
}

// readMakers reads those of one kind. Of ReplicaSets there are many old ones, so no more than their metadata.
func (c *Cluster) readMakers(ctx context.Context, namespace string, kind workloadKind, known map[types.UID]made) error {
	err := c.list(ctx, selection{metadata: kind == replicaSets}, func(text []byte) error {
		var object struct {
			Metadata metav1.ObjectMeta `json:"metadata"`
		}
		text, err := kind.complete(text)
		if err == nil {
			err = json.Unmarshal(text, &object)
		}
		known[object.Metadata.UID] = made{kind, object.Metadata, text}
		return err
	}, kind.path(namespace)...)
	if err != nil {
		return fmt.Errorf("read the %ss of %s: %w", kind.kind, place(namespace), err)
	}
	return nil
}

// ownerOf climbs from a pod to what makes it.
func ownerOf(pod *corev1.Pod, known map[types.UID]made) *Owner {
	of := metav1.GetControllerOf(pod)
	if of == nil {
		return &Owner{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, uid: pod.UID}
	}
	for m, ok := known[of.UID]; ok; m, ok = known[of.UID] {
		above := metav1.GetControllerOf(&m.metadata)
		if above == nil || m.kind != replicaSets && above.Kind != unitedDeployment {
			break
		}
		of = above
	}
	owner := &Owner{APIVersion: of.APIVersion, Kind: of.Kind, Namespace: pod.Namespace, Name: of.Name, uid: of.UID}
	if m, ok := known[of.UID]; ok {
		owner.APIVersion, owner.Text = m.kind.apiVersion(), m.text
	}
	return owner
}

// template finds the pod template of an owner.
func (c *Cluster) template(ctx context.Context, owner *Owner) (err error) {
	text := owner.Text
	switch owner.Kind {
	case replicaSets.kind:
		text, err = c.get(ctx, append(replicaSets.path(owner.Namespace), owner.Name)...)
		owner.Text = text
		if template, err := offline.NewWorkload(text); err == nil { // else it is another object's
			owner.Template = template
		}
	case "Rollout":
		text, err = c.referred(ctx, owner)
	}
	if err == nil && text == nil { // not known, or gone meanwhile
		text, err = json.Marshal(owner.Pods[0])
	}
	if err == nil {
		owner.Template, err = offline.NewWorkload(text)
	}
	return err
}

// referred is the object that has a Rollout's template.
func (c *Cluster) referred(ctx context.Context, owner *Owner) ([]byte, error) {
	var rollout struct {
		Spec struct {
			WorkloadRef *struct{ Kind, Name string } `json:"workloadRef"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(owner.Text, &rollout); err != nil || rollout.Spec.WorkloadRef == nil {
		return owner.Text, nil
	}
	kinds := append([]workloadKind{replicaSets}, makers...)
	at := slices.IndexFunc(kinds, func(k workloadKind) bool { return k.kind == rollout.Spec.WorkloadRef.Kind })
	if at < 0 {
		return nil, nil
	}
	text, err := c.get(ctx, append(kinds[at].path(owner.Namespace), rollout.Spec.WorkloadRef.Name)...)
	if err == nil && text == nil {
		err = fmt.Errorf("there is no %s %s, to which spec.workloadRef refers", rollout.Spec.WorkloadRef.Kind, rollout.Spec.WorkloadRef.Name)
	}
	return text, err
}

// ErrGone is that an owner is not there any more.
var ErrGone = errors.New("it was deleted meanwhile")

// Refresh reads an owner and its pods again. An error is [ErrGone] if it is not there.
func (c *Cluster) Refresh(ctx context.Context, owner *Owner) error {
	kind, err := kindOf(owner)
	if err != nil {
		return err
	}
	text, err := c.get(ctx, append(kind.path(owner.Namespace), owner.Name)...)
	if err == nil && text == nil {
		err = ErrGone
	}
	if err != nil {
		return fmt.Errorf("read %s %s/%s: %w", owner.Kind, owner.Namespace, owner.Name, err)
	}
	labels, err := owner.Template.Selector()
	if err != nil {
		return err
	}
	pods, err := c.pods(ctx, owner.Namespace, labels)
	if err != nil {
		return err
	}
	owner.Text = text
	if template, err := offline.NewWorkload(text); err == nil { // else it is another object's
		owner.Template = template
	}
	owner.Pods = slices.DeleteFunc(pods, func(p *corev1.Pod) bool {
		of := metav1.GetControllerOf(p) // another workload may have the same labels, but for the hash that ReplicaSets have
		return of == nil || of.UID != owner.uid && of.Kind != replicaSets.kind && owner.Kind != unitedDeployment
	})
	return nil
}

// kindOf is where the API server has a known owner.
func kindOf(owner *Owner) (workloadKind, error) {
	for _, k := range append([]workloadKind{replicaSets}, makers...) {
		if owner.Known() && k.kind == owner.Kind && k.apiVersion() == owner.APIVersion {
			return k, nil
		}
	}
	return workloadKind{}, fmt.Errorf("%s %s/%s: its kind is not known", owner.Kind, owner.Namespace, owner.Name)
}
