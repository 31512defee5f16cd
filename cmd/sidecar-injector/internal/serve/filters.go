package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/pkg/asmfilter"
)

var (
	filterDeploymentsResource = schema.GroupVersionResource{Group: "istio.alibabacloud.com", Version: "v1beta1", Resource: "asmfilterdeployments"}
	envoyFiltersResource      = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: "envoyfilters"}
)

const (
	// filtersName is the field manager and the lease of those who keep the filters.
	filtersName = "sidecar-injector-filters"
	// filterLabel is on each EnvoyFilter that is made here, with filterLabelValue; no other is ever changed.
	filterLabel, filterLabelValue = "understudy.mesh/made-of", asmfilter.Kind
	// applied is the condition of a document that its EnvoyFilter is there.
	applied = "Applied"
)

// filters keeps an EnvoyFilter for each ASMFilterDeployment, for istiod to apply, and says in the status of each what became of it. It
// looks at everything each time, so that what a replica did before it ended, or did not do, makes no difference to the next one.
type filters struct {
	client            dynamic.Interface
	documents, living watched
	log               *slog.Logger
	now               func() time.Time
	// written is what was last applied, by key: a look at what has not changed asks the API server nothing.
	written  map[string]applying
	problems map[string]string // the last one of each document that was logged
}

// applying is what was applied, and the version that the API server gave it.
type applying struct {
	text    []byte
	version string
}

// labelled narrows what is listed and watched to what is made here.
func labelled(options metav1.ListOptions) metav1.ListOptions {
	options.LabelSelector = filterLabel + "=" + filterLabelValue
	return options
}

func newFilters(client dynamic.Interface, log *slog.Logger, changed func(key string)) *filters {
	f := &filters{client: client, log: log, now: time.Now, written: map[string]applying{}, problems: map[string]string{}}
	f.documents = watching("asmfilterdeployments", objects{client.Resource(filterDeploymentsResource)}, &unstructured.Unstructured{}, "", bare, changed)
	f.living = watching("envoyfilters", narrowed{objects{client.Resource(envoyFiltersResource)}, labelled}, &unstructured.Unstructured{}, "", bare, changed)
	return f
}

// synced is an error as long as not everything has been read: what is not known might be taken for what is gone.
func (f *filters) synced() error { return pending([]watched{f.documents, f.living}) }

// run keeps until ctx ends. wake asks for a look before its time.
func (f *filters) run(ctx context.Context, wake <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		if f.synced() == nil {
			f.look(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// look does what there is to do. A document that fails keeps no other waiting.
func (f *filters) look(ctx context.Context) {
	wanted := map[string]bool{}
	for _, object := range f.documents.store.List() {
		o, ok := object.(*unstructured.Unstructured)
		if !ok || ctx.Err() != nil {
			continue
		}
		key := o.GetNamespace() + "/" + o.GetName()
		wanted[key] = true
		f.tell(ctx, key, f.document(ctx, key, o))
	}
	for _, key := range f.living.store.ListKeys() {
		if live := get[unstructured.Unstructured](f.living, key); live != nil && !wanted[key] && ctx.Err() == nil {
			f.tell(ctx, key, f.remove(ctx, key, live))
		}
	}
	for key := range f.written {
		if !wanted[key] {
			delete(f.written, key)
		}
	}
}

// tell logs what is wrong with a document, once each.
func (f *filters) tell(ctx context.Context, key string, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		delete(f.problems, key)
	case f.problems[key] != err.Error():
		f.problems[key] = err.Error()
		f.log.Error("not kept", "document", key, "err", err)
	}
}

// document keeps the EnvoyFilter of one document, and its status. A document that is bad leaves the EnvoyFilter that it had.
func (f *filters) document(ctx context.Context, key string, o *unstructured.Unstructured) error {
	if o.GetDeletionTimestamp() != nil {
		return nil // its EnvoyFilter goes with it
	}
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	d, wrong := asmfilter.Read(o.GetNamespace(), o.GetName(), o.GetAnnotations()[asmfilter.FailStrategyAnnotation], o.Object["spec"])
	if wrong != nil {
		conditions := []metav1.Condition{condition(accepted, false, "Invalid", wrong.Error())}
		if get[unstructured.Unstructured](f.living, key) != nil {
			conditions = append(conditions, condition(applied, true, "Before", "the EnvoyFilter of its last good state stays"))
		} else {
			conditions = append(conditions, condition(applied, false, "Invalid", "no good state of it was ever applied"))
		}
		return f.say(ctx, o, conditions)
	}
	conditions := []metav1.Condition{condition(accepted, true, "Valid", "")}
	err := f.apply(ctx, key, o, d)
	if err != nil {
		conditions = append(conditions, condition(applied, false, "Failed", oneLine(err)))
	} else {
		conditions = append(conditions, condition(applied, true, "Applied", "EnvoyFilter "+o.GetName()))
	}
	return errors.Join(err, f.say(ctx, o, conditions))
}

// errNotOurs is an EnvoyFilter of a document's name that somebody else has made.
var errNotOurs = errors.New("there is an EnvoyFilter of that name already, which was not made of this document: delete or rename one of the two")

// apply writes the EnvoyFilter, if the API server has it otherwise.
func (f *filters) apply(ctx context.Context, key string, o *unstructured.Unstructured, d *asmfilter.Document) error {
	want := &unstructured.Unstructured{Object: d.Manifest()}
	want.SetLabels(map[string]string{filterLabel: filterLabelValue})
	want.SetOwnerReferences([]metav1.OwnerReference{{
		APIVersion: o.GetAPIVersion(), Kind: o.GetKind(), Name: o.GetName(), UID: o.GetUID(), Controller: new(true),
	}})
	text, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("write the EnvoyFilter: %w", err)
	}
	live := get[unstructured.Unstructured](f.living, key)
	if live != nil && bytes.Equal(text, f.written[key].text) && live.GetResourceVersion() == f.written[key].version {
		return nil
	}
	calls := f.client.Resource(envoyFiltersResource).Namespace(o.GetNamespace())
	if live == nil {
		there, err := calls.Get(ctx, o.GetName(), metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case err != nil:
			return fmt.Errorf("read the EnvoyFilter: %w", err)
		case there.GetLabels()[filterLabel] != filterLabelValue:
			return errNotOurs
		}
	}
	written, err := calls.Apply(ctx, o.GetName(), want, metav1.ApplyOptions{FieldManager: filtersName, Force: true})
	if err != nil {
		return fmt.Errorf("apply the EnvoyFilter: %w", err)
	}
	if live == nil || written.GetResourceVersion() != live.GetResourceVersion() {
		f.log.Info("EnvoyFilter applied", "document", key)
	}
	f.written[key] = applying{text, written.GetResourceVersion()}
	return nil
}

// remove deletes an EnvoyFilter whose document is gone, as it was seen: the garbage collector does so as well, where there is one.
func (f *filters) remove(ctx context.Context, key string, live *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	uid, version := live.GetUID(), live.GetResourceVersion()
	err = f.client.Resource(envoyFiltersResource).Namespace(namespace).Delete(ctx, name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // a newer one is another look's
		return fmt.Errorf("delete the EnvoyFilter of a document that is gone: %w", err)
	}
	if err == nil {
		f.log.Info("EnvoyFilter deleted, as its document is gone", "document", key)
	}
	return nil
}

// say writes the conditions into the status, if it has others.
func (f *filters) say(ctx context.Context, o *unstructured.Unstructured, conditions []metav1.Condition) error {
	has, err := readStatus(o)
	if err != nil {
		return err
	}
	for i := range conditions {
		c := &conditions[i]
		c.ObservedGeneration = o.GetGeneration()
		c.LastTransitionTime = metav1.NewTime(f.now().UTC().Truncate(time.Second))
		if before := meta.FindStatusCondition(has.Conditions, c.Type); before != nil && before.Status == c.Status {
			c.LastTransitionTime = before.LastTransitionTime
		}
	}
	if has.ObservedGeneration == o.GetGeneration() && reflect.DeepEqual(byType(has.Conditions), byType(conditions)) {
		return nil
	}
	has.ObservedGeneration, has.Conditions = o.GetGeneration(), conditions
	object, err := statusOf(o, &has)
	if err != nil {
		return err
	}
	_, err = f.client.Resource(filterDeploymentsResource).Namespace(o.GetNamespace()).
		ApplyStatus(ctx, o.GetName(), object, metav1.ApplyOptions{FieldManager: filtersName, Force: true})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write the status: %w", err)
	}
	return nil
}
