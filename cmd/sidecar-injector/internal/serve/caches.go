package serve

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/pkg/profile"
)

// What is watched.
var (
	profilesResource       = schema.GroupVersionResource{Group: profile.Group, Version: profile.Version, Resource: "sidecarprofiles"}
	namespacesResource     = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	nodesResource          = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	secretsResource        = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configurationsResource = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
)

// watched is what the injector knows of one kind of objects: a copy that goes on being there while the API server is not.
type watched struct {
	what  string
	store cache.Store
	run   func(context.Context)
	ready func() bool
}

// lister lists and watches one kind; the clients of whole objects and of metadata have it alike.
type lister interface {
	list(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

type objects struct{ dynamic.ResourceInterface }

func (o objects) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return o.List(ctx, options)
}

func (o objects) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return o.Watch(ctx, options)
}

// narrowed are those of a lister that options select.
type narrowed struct {
	lister
	narrow func(metav1.ListOptions) metav1.ListOptions
}

func (n narrowed) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return n.lister.list(ctx, n.narrow(options))
}

func (n narrowed) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return n.lister.watch(ctx, n.narrow(options))
}

type metadataOnly struct{ metadata.ResourceInterface }

func (m metadataOnly) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	return m.List(ctx, options)
}

func (m metadataOnly) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	return m.Watch(ctx, options)
}

// watching returns what keeps a copy of the objects that a lister gives, less what strip takes away. changed is called after
// each change, with the object's key.
func watching(what string, l lister, example runtime.Object, name string, strip func(any) (any, error), changed func(key string)) watched {
	narrow := func(options metav1.ListOptions) metav1.ListOptions {
		if name != "" {
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name).String()
		}
		return options
	}
	note := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			changed(key)
		}
	}
	store, controller := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: &cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return l.list(ctx, narrow(options))
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return l.watch(ctx, narrow(options))
			},
		},
		ObjectType: example,
		Transform:  strip,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: note, UpdateFunc: func(_, object any) { note(object) }, DeleteFunc: note,
		},
	})
	return watched{what: what, store: store, run: controller.RunWithContext, ready: controller.HasSynced}
}

// get is the object of a key, or nil.
func get[T any](w watched, key string) *T {
	object, found, err := w.store.GetByKey(key)
	if err != nil || !found {
		return nil
	}
	typed, _ := object.(*T)
	return typed
}

// bare takes from an object's metadata what nobody here reads: who wrote which field, and what kubectl applied last.
func bare(object any) (any, error) {
	if o, ok := object.(metav1.Object); ok {
		o.SetManagedFields(nil)
		annotations := o.GetAnnotations()
		delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
		o.SetAnnotations(annotations)
	}
	return object, nil
}

// versionOnly leaves of a node its name and its kubelet's version.
func versionOnly(object any) (any, error) {
	node, ok := object.(*unstructured.Unstructured)
	if !ok {
		return object, nil
	}
	stripped := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Node"}}
	stripped.SetName(node.GetName())
	stripped.SetResourceVersion(node.GetResourceVersion())
	version, _, err := unstructured.NestedString(node.Object, kubeletVersion...)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node.GetName(), err)
	}
	return stripped, unstructured.SetNestedField(stripped.Object, version, kubeletVersion...)
}

// kubeletVersion is where a node says it.
var kubeletVersion = []string{"status", "nodeInfo", "kubeletVersion"}

// pending names the caches that have not been filled yet.
func pending(all []watched) error {
	var names []string
	for _, w := range all {
		if !w.ready() {
			names = append(names, w.what)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("not read from the API server yet: %s", strings.Join(names, ", "))
}

// caches is all that the injector knows of the cluster.
type caches struct {
	options  Options
	metadata metadata.Interface
	log      *slog.Logger

	profiles *profiles
	policies policies
	nodes    *nodes
	istiods  *istiods
	ask      wake // of the istiods

	namespaces, sidecarProfiles, configurations, nodeVersions, secret watched
	filled                                                            sync.Once
}

// newCaches returns caches that are filled once their run goes. keep is called when something has changed of which the keeper
// makes something, sign when the authority has.
func newCaches(whole dynamic.Interface, meta metadata.Interface, o Options, log *slog.Logger, keep, sign func()) *caches {
	c := &caches{options: o, metadata: meta, log: log, profiles: newProfiles(o.Namespace), nodes: newNodes(), ask: newWake()}
	c.istiods = newIstiods(c.profiles.discoveryAddresses, log)
	c.namespaces = watching("namespaces", metadataOnly{meta.Resource(namespacesResource)}, &metav1.PartialObjectMetadata{}, "", bare, func(string) {})
	c.sidecarProfiles = watching("sidecarprofiles", objects{whole.Resource(profilesResource)}, &unstructured.Unstructured{}, "", bare,
		func(key string) { c.takeProfile(key); keep(); c.ask.up() })
	c.nodeVersions = watching("nodes", objects{whole.Resource(nodesResource)}, &unstructured.Unstructured{}, "", versionOnly,
		func(name string) { c.nodes.set(name, c.versionOf(name)) })
	c.configurations = watching("mutatingwebhookconfigurations", objects{whole.Resource(configurationsResource)}, &unstructured.Unstructured{}, "", bare,
		func(string) { keep() })
	c.secret = watching("secret "+secretName, objects{whole.Resource(secretsResource).Namespace(o.Namespace)}, &unstructured.Unstructured{}, secretName, bare,
		func(string) { sign(); keep() })
	return c
}

func (c *caches) versionOf(node string) string {
	o := get[unstructured.Unstructured](c.nodeVersions, node)
	if o == nil {
		return ""
	}
	version, _, _ := unstructured.NestedString(o.Object, kubeletVersion...) // versionOnly wrote it
	return cmp.Or(version, "unknown")
}

// all are the copies that have to be there before a pod can be judged.
func (c *caches) all() []watched {
	all := []watched{c.namespaces, c.sidecarProfiles, c.nodeVersions, c.configurations}
	if c.options.ownAuthority() {
		all = append(all, c.secret)
	}
	return all
}

// synced is an error as long as something that decides about pods has not been read.
func (c *caches) synced() error {
	if err := pending(c.all()); err != nil {
		return err
	}
	// A copy may be there an instant before what is called for its last change.
	c.filled.Do(func() {
		for _, key := range c.sidecarProfiles.store.ListKeys() {
			c.takeProfile(key)
		}
	})
	return nil
}

// takeProfile takes a namespace's settings as the copy has them now.
func (c *caches) takeProfile(key string) {
	if namespace, name, _ := cache.SplitMetaNamespaceKey(key); name == profile.Name {
		c.profiles.set(namespace, get[unstructured.Unstructured](c.sidecarProfiles, key))
	}
}

// theSecret is the authority's Secret as it is known; nil: there is none.
func (c *caches) theSecret() *unstructured.Unstructured {
	return get[unstructured.Unstructured](c.secret, c.options.Namespace+"/"+secretName)
}
