package upgrader

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/pkg/profile"
)

// seen is what a namespace has, as far as it is known: what was watched, and before that what a write has answered.
type seen struct {
	mu      sync.Mutex
	pods    map[types.UID]*rollout.Pod
	budgets map[string]rollout.Budget
	upgrade *rollout.SidecarUpgrade
	changed func()
	whole   []func() bool // whether each kind was listed
	working sync.WaitGroup
}

// note takes a pod, unless a later state of it is known.
func (s *seen) note(p *rollout.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if has := s.pods[p.UID]; !p.Slotted() || has != nil && later(has.ResourceVersion, p.ResourceVersion) {
		return
	}
	s.pods[p.UID] = p
	s.changed()
}

func (s *seen) forget(p *rollout.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pods, p.UID)
	s.changed()
}

// noteUpgrade takes the upgrade, unless a later state of it is known; nil: there is none.
func (s *seen) noteUpgrade(o *unstructured.Unstructured) error {
	upgrade, err := decode(o)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if upgrade != nil && s.upgrade != nil && s.upgrade.UID == upgrade.UID && later(s.upgrade.ResourceVersion, upgrade.ResourceVersion) {
		return nil
	}
	s.upgrade = upgrade
	s.changed()
	return nil
}

// later reports whether one version of an object is not before another.
func later(one, other string) bool {
	order, err := resourceversion.CompareResourceVersion(one, other)
	return err == nil && order >= 0
}

func decode(o *unstructured.Unstructured) (*rollout.SidecarUpgrade, error) {
	if o == nil {
		return nil, nil
	}
	text, err := json.Marshal(o.Object)
	upgrade := new(rollout.SidecarUpgrade)
	if err == nil {
		err = json.Unmarshal(text, upgrade)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s/%s: %w", rollout.Kind, o.GetNamespace(), o.GetName(), err)
	}
	return upgrade, nil
}

// world is what there is now; ok that everything was listed.
func (s *seen) world() (w rollout.World, ok bool) {
	for _, listed := range s.whole {
		if !listed() {
			return rollout.World{}, false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.upgrade == nil {
		return rollout.World{}, false
	}
	upgrade := *s.upgrade
	w = rollout.World{Upgrade: &upgrade, Pods: make([]*rollout.Pod, 0, len(s.pods))}
	for _, p := range s.pods {
		w.Pods = append(w.Pods, p)
	}
	for _, b := range s.budgets {
		w.Budgets = append(w.Budgets, b)
	}
	return w, true
}

// watch follows a namespace's pods and budgets until ctx ends, and what is asked for in it.
func (u *Upgrader) watch(ctx context.Context, namespace string, changed func()) *seen {
	s := &seen{pods: map[types.UID]*rollout.Pod{}, budgets: map[string]rollout.Budget{}, changed: changed}
	s.follow(ctx, u.podLists(namespace), &corev1.Pod{}, u.view, cache.ResourceEventHandlerFuncs{
		AddFunc: s.addPod, UpdateFunc: func(_, object any) { s.addPod(object) },
		DeleteFunc: func(object any) {
			if p, ok := last(object).(*rollout.Pod); ok {
				s.forget(p)
			}
		},
	})
	s.follow(ctx, dynamicList(u.objects.Resource(budgetsResource).Namespace(namespace), ""), &unstructured.Unstructured{}, nil, cache.ResourceEventHandlerFuncs{
		AddFunc: u.addBudget(s), UpdateFunc: func(_, object any) { u.addBudget(s)(object) },
		DeleteFunc: func(object any) {
			if b, ok := last(object).(*unstructured.Unstructured); ok {
				s.mu.Lock()
				delete(s.budgets, b.GetName())
				s.mu.Unlock()
			}
		},
	})
	s.follow(ctx, u.upgrades(namespace), &unstructured.Unstructured{}, nil, u.upgradeHandler(func(o *unstructured.Unstructured) error { return s.noteUpgrade(o) }))
	return s
}

// upgrades lists and watches what is asked for in a namespace; "" is all.
func (u *Upgrader) upgrades(namespace string) cache.ListerWatcher {
	return dynamicList(u.objects.Resource(upgradesResource).Namespace(namespace), profile.Name)
}

// upgradeHandler gives each state of an upgrade to note, and nil when it goes.
func (u *Upgrader) upgradeHandler(note func(*unstructured.Unstructured) error) cache.ResourceEventHandler {
	take := func(object any) {
		o, _ := object.(*unstructured.Unstructured)
		if err := note(o); err != nil {
			u.log.Error("an upgrade cannot be read", "err", err)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: take, UpdateFunc: func(_, object any) { take(object) }, DeleteFunc: func(any) { take(nil) }}
}

func (s *seen) addPod(object any) {
	if p, ok := object.(*rollout.Pod); ok {
		s.note(p)
	}
}

// podLists lists and watches a namespace's pods. Where they are not streamed (KEP-3157), what is kept of them is taken page by page: all of
// them at once, as an API server sends them otherwise, are fifty times as much.
func (u *Upgrader) podLists(namespace string) cache.ListerWatcher {
	pods := cache.NewListWatchFromClient(u.pods, "pods", namespace, fields.ParseSelectorOrDie(notEnded))
	pods.ListWithContextFunc = func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
		all := new(corev1.List)
		var err error
		all.ResourceVersion, err = u.pages(ctx, namespace, func(p *rollout.Pod) { all.Items = append(all.Items, runtime.RawExtension{Object: listed{p}}) })
		return all, err
	}
	return pods
}

// listed is what is kept of a pod, as a list has it.
type listed struct{ *rollout.Pod }

// GetObjectKind says nothing: nobody asks.
func (listed) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject returns the same pod, which nobody changes.
func (l listed) DeepCopyObject() runtime.Object { return l }

// view is all that is kept of a pod.
func (u *Upgrader) view(object any) (any, error) {
	switch o := object.(type) {
	case *corev1.Pod:
		return u.viewOf(o), nil
	case listed:
		return o.Pod, nil
	}
	return object, nil
}

func (u *Upgrader) viewOf(p *corev1.Pod) *rollout.Pod {
	v := rollout.View(p)
	if v.Slotted() {
		v.Outdated = u.outdated(p)
	}
	return v
}

func last(object any) any {
	if tombstone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		return tombstone.Obj
	}
	return object
}

// addBudget takes a PodDisruptionBudget.
func (u *Upgrader) addBudget(s *seen) func(any) {
	return func(object any) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return
		}
		var b policyv1.PodDisruptionBudget
		budget := rollout.Budget{Name: o.GetName()}
		err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &b)
		if err == nil {
			budget.Selector, err = metav1.LabelSelectorAsSelector(b.Spec.Selector)
		}
		if err != nil {
			u.log.Error("a PodDisruptionBudget cannot be read, and does not count", "name", o.GetName(), "err", err)
			return
		}
		budget.Allowed = int(b.Status.DisruptionsAllowed)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.budgets[budget.Name] = budget
		s.changed()
	}
}

func (s *seen) follow(ctx context.Context, lw cache.ListerWatcher, example runtime.Object, strip cache.TransformFunc, handler cache.ResourceEventHandler) {
	_, controller := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lw, ObjectType: example, Transform: strip, Handler: handler})
	s.whole = append(s.whole, controller.HasSynced)
	s.working.Go(func() { controller.RunWithContext(ctx) })
}

// dynamicList lists and watches one kind; name is of the only object that counts, "" that all do.
func dynamicList(r dynamic.ResourceInterface, name string) cache.ListerWatcher {
	narrow := func(o metav1.ListOptions) metav1.ListOptions {
		if name != "" {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
		return o
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, narrow(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return r.Watch(ctx, narrow(o))
		},
	}
}
