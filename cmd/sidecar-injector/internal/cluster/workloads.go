package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// workloadKind is a kind of object that has a pod template, and where the API server has it.
type workloadKind struct {
	kind, group, version, resource string
}

// workloadKinds are those that are asked for by name, in small letters as kubectl takes them.
var workloadKinds = map[string]workloadKind{
	"deployment":  {"Deployment", "apps", "v1", "deployments"},
	"statefulset": {"StatefulSet", "apps", "v1", "statefulsets"},
	"daemonset":   {"DaemonSet", "apps", "v1", "daemonsets"},
	"cloneset":    {"CloneSet", "apps.kruise.io", "v1alpha1", "clonesets"},
}

// Deployments are a namespace's, by name.
func (c *Cluster) Deployments(ctx context.Context, namespace string) ([]offline.Workload, error) {
	k := workloadKinds["deployment"]
	text, err := c.get(ctx, k.path(namespace)...)
	var list struct {
		Items []json.RawMessage `json:"items"`
	}
	if err == nil && text != nil {
		err = json.Unmarshal(text, &list)
	}
	var all []offline.Workload
	for _, item := range list.Items {
		if err != nil {
			break
		}
		var w offline.Workload
		if w, err = k.workload(item); err == nil {
			all = append(all, w)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the Deployments of namespace %s: %w", namespace, err)
	}
	return all, nil
}

// Workload is one of a namespace, by NAME, which is a Deployment's, or KIND/NAME.
func (c *Cluster) Workload(ctx context.Context, namespace, name string) (offline.Workload, error) {
	kind := "deployment"
	if before, after, ok := strings.Cut(name, "/"); ok {
		kind, name = strings.ToLower(before), after
	}
	k, ok := workloadKinds[kind]
	if !ok {
		return offline.Workload{}, fmt.Errorf("kind %q: want one of %s", kind, strings.Join(slices.Sorted(maps.Keys(workloadKinds)), ", "))
	}
	text, err := c.get(ctx, append(k.path(namespace), name)...)
	if err == nil && text == nil {
		err = errors.New("there is none of that name")
	}
	var w offline.Workload
	if err == nil {
		w, err = k.workload(text)
	}
	if err != nil {
		return offline.Workload{}, fmt.Errorf("read %s %s/%s: %w", k.kind, namespace, name, err)
	}
	return w, nil
}

func (k workloadKind) path(namespace string) []string {
	return []string{"apis", k.group, k.version, "namespaces", namespace, k.resource}
}

// workload is an object of the kind; one of a list does not say its own.
func (k workloadKind) workload(text []byte) (offline.Workload, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return offline.Workload{}, err
	}
	object["kind"] = json.RawMessage(fmt.Sprintf("%q", k.kind))
	object["apiVersion"] = json.RawMessage(fmt.Sprintf("%q", k.group+"/"+k.version))
	text, err := json.Marshal(object)
	if err != nil {
		return offline.Workload{}, err
	}
	return offline.NewWorkload(text)
}
