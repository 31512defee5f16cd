package upgrader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/profile"
)

// deploymentLease is the Lease of the injector's namespace that the Deployment of the upgrader holds while it works.
const deploymentLease = "sidecar-upgrader"

// errNoKind is that the cluster has no SidecarUpgrades.
var errNoKind = errors.New("the cluster has no kind SidecarUpgrade: kubectl apply -f deploy/chart/crds")

var (
	profilesResource = schema.GroupVersionResource{Group: profile.Group, Version: profile.Version, Resource: "sidecarprofiles"}
	reviewsResource  = schema.GroupVersionResource{Group: "authentication.k8s.io", Version: "v1", Resource: "selfsubjectreviews"}
)

// Get reads the upgrade of a namespace; nil if there is none.
func (u *Upgrader) Get(ctx context.Context, namespace string) (*rollout.SidecarUpgrade, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	o, err := u.objects.Resource(upgradesResource).Namespace(namespace).Get(ctx, profile.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) && !noKind(err):
		return nil, nil
	case noKind(err):
		return nil, errNoKind
	case err != nil:
		return nil, fmt.Errorf("read %s %s/%s: %w", rollout.Kind, namespace, profile.Name, err)
	}
	return decode(o)
}

// noKind reports whether an answer says that there is no such kind: no object of the API, but "404 page not found".
func noKind(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// Put makes the upgrade of a namespace, or asks for something else in the one that there is.
func (u *Upgrader) Put(ctx context.Context, namespace string, before *rollout.SidecarUpgrade, spec rollout.Spec) (*rollout.SidecarUpgrade, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	upgrades := u.objects.Resource(upgradesResource).Namespace(namespace)
	after := &rollout.SidecarUpgrade{Spec: spec}
	after.APIVersion, after.Kind, after.Name, after.Namespace = profile.Group+"/"+profile.Version, rollout.Kind, profile.Name, namespace
	if before != nil {
		after.ObjectMeta = before.ObjectMeta
	}
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(after)
	if err == nil {
		delete(fields, "status")
		o := &unstructured.Unstructured{Object: fields}
		if before == nil {
			o, err = upgrades.Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager})
		} else {
			o, err = upgrades.Update(ctx, o, metav1.UpdateOptions{FieldManager: fieldManager})
		}
		if err == nil {
			return decode(o)
		}
	}
	if noKind(err) {
		return nil, errNoKind
	}
	return nil, fmt.Errorf("write %s %s/%s: %w", rollout.Kind, namespace, profile.Name, err)
}

// Who is the user as whom the API server knows us; "" if it does not say.
func (u *Upgrader) Who(ctx context.Context) string {
	ctx, cancel := call(ctx)
	defer cancel()
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}}
	review, err := u.objects.Resource(reviewsResource).Create(ctx, o, metav1.CreateOptions{})
	if err != nil {
		return ""
	}
	name, _, _ := unstructured.NestedString(review.Object, "status", "userInfo", "username")
	return name
}

// WriteImage writes the proxy's image into the SidecarProfile of a namespace, which is made if there is none: new pods get it.
func (u *Upgrader) WriteImage(ctx context.Context, namespace, image string) error {
	ctx, cancel := call(ctx)
	defer cancel()
	text, err := json.Marshal(map[string]any{
		"apiVersion": profile.Group + "/" + profile.Version, "kind": profile.Kind, "metadata": map[string]any{"name": profile.Name},
		"spec": map[string]any{"proxy": map[string]any{"image": image}},
	})
	if err == nil {
		_, err = u.objects.Resource(profilesResource).Namespace(namespace).
			Patch(ctx, profile.Name, types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: fieldManager, Force: new(true)})
	}
	if err != nil {
		return fmt.Errorf("write the image into %s %s/%s, for new pods: %w", profile.Kind, namespace, profile.Name, err)
	}
	return nil
}

// Deployed reports whether the upgrader's Deployment is at work, so that nobody else need be.
func (u *Upgrader) Deployed(ctx context.Context, namespace string) bool {
	ctx, cancel := call(ctx)
	defer cancel()
	lease, err := u.leases.Leases(namespace).Get(ctx, deploymentLease, metav1.GetOptions{})
	return err == nil && holds(lease, time.Now())
}

func holds(l *coordinationv1.Lease, now time.Time) bool {
	s := l.Spec
	return s.HolderIdentity != nil && *s.HolderIdentity != "" && s.RenewTime != nil && s.LeaseDurationSeconds != nil &&
		now.Sub(s.RenewTime.Time) < time.Duration(*s.LeaseDurationSeconds)*time.Second
}

const (
	// pageSize is how many pods the API server is asked for at once.
	pageSize = 500
	// notEnded selects the pods that count.
	notEnded = "status.phase!=Succeeded,status.phase!=Failed"
)

// Pods are a namespace's that have two slots, as they are now.
func (u *Upgrader) Pods(ctx context.Context, namespace string) ([]*rollout.Pod, error) {
	var all []*rollout.Pod
	_, err := u.pages(ctx, namespace, func(p *rollout.Pod) {
		if p.Slotted() {
			all = append(all, p)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the pods of namespace %s: %w", namespace, err)
	}
	return all, nil
}

// pages calls note with a namespace's pods. version is the state of the cluster that they are of.
func (u *Upgrader) pages(ctx context.Context, namespace string, note func(*rollout.Pod)) (version string, err error) {
	for next := ""; ; {
		list, err := u.page(ctx, namespace, next)
		if err != nil {
			return "", err
		}
		for i := range list.Items {
			note(u.viewOf(&list.Items[i]))
		}
		if next = list.Continue; next == "" {
			return list.ResourceVersion, nil
		}
	}
}

// page is what the API server has of pods after those before.
func (u *Upgrader) page(ctx context.Context, namespace, next string) (*corev1.PodList, error) {
	ctx, cancel := call(ctx)
	defer cancel()
	list := new(corev1.PodList)
	return list, u.pods.Get().Namespace(namespace).Resource("pods").Param("limit", fmt.Sprint(pageSize)).Param("continue", next).
		Param("fieldSelector", notEnded).Do(ctx).Into(list)
}

// Try says what would become of pods by a spec: one look of the engine, which writes nothing.
func Try(spec rollout.Spec, pods []*rollout.Pod) rollout.Status {
	upgrade := &rollout.SidecarUpgrade{Spec: spec}
	return rollout.New().Step(time.Now(), rollout.World{Upgrade: upgrade, Pods: pods}).Status
}

// Images are all that the slots of pods have.
func Images(pods []*rollout.Pod) []string {
	found := map[string]bool{}
	for _, p := range pods {
		working, idle := p.Images()
		found[working], found[idle] = true, true
	}
	return slices.Sorted(maps.Keys(found))
}

// Follow calls note with each state of the namespace's upgrade until that returns true, the upgrade is gone, or ctx ends.
func (u *Upgrader) Follow(ctx context.Context, namespace string, note func(*rollout.SidecarUpgrade) (over bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	states := make(chan *rollout.SidecarUpgrade)
	s := &seen{}
	s.follow(ctx, u.upgrades(namespace), &unstructured.Unstructured{}, nil, u.upgradeHandler(func(o *unstructured.Unstructured) error {
		upgrade, err := decode(o)
		if err != nil {
			return err
		}
		select {
		case states <- upgrade:
		case <-ctx.Done():
		}
		return nil
	}))
	defer s.working.Wait()
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case upgrade := <-states:
			if upgrade == nil {
				return fmt.Errorf("%s %s/%s was deleted", rollout.Kind, namespace, profile.Name)
			}
			if note(upgrade) {
				return nil
			}
		}
	}
}
