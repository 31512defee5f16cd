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

// workloadKind is a kind of object that makes pods, and where the API server has it.
type workloadKind struct {
	kind, group, version, resource string
}

// makers are the kinds whose objects are looked for behind pods, those that make others of them last.
var makers = []workloadKind{
	{"Deployment", "apps", "v1", "deployments"},
	{"StatefulSet", "apps", "v1", "statefulsets"},
	{"DaemonSet", "apps", "v1", "daemonsets"},
	{"ReplicationController", "", "v1", "replicationcontrollers"},
	{"CloneSet", "apps.kruise.io", "v1alpha1", "clonesets"},
	{"StatefulSet", "apps.kruise.io", "v1beta1", "statefulsets"},
	{"DaemonSet", "apps.kruise.io", "v1alpha1", "daemonsets"},
	{"Rollout", "argoproj.io", "v1alpha1", "rollouts"},
	{unitedDeployment, "apps.kruise.io", "v1alpha1", "uniteddeployments"},
}

// unitedDeployment is a kind of OpenKruise that makes a workload for each of its subsets.
const unitedDeployment = "UnitedDeployment"

// replicaSets stand between their makers and the pods; one by itself is a maker as well.
var replicaSets = workloadKind{"ReplicaSet", "apps", "v1", "replicasets"}

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
	var all []offline.Workload
	err := c.list(ctx, selection{}, func(text []byte) error {
		text, err := k.complete(text)
		var w offline.Workload
		if err == nil {
			w, err = offline.NewWorkload(text)
		}
		all = append(all, w)
		return err
	}, k.path(namespace)...)
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
		w, err = offline.NewWorkload(text)
	}
	if err != nil {
		return offline.Workload{}, fmt.Errorf("read %s %s/%s: %w", k.kind, namespace, name, err)
	}
	return w, nil
}

// path is where a namespace's are, or with "" everybody's.
func (k workloadKind) path(namespace string) []string {
	path := []string{"apis", k.group, k.version}
	if k.group == "" {
		path = []string{"api", k.version}
	}
	if namespace != "" {
		path = append(path, "namespaces", namespace)
	}
	return append(path, k.resource)
}

func (k workloadKind) apiVersion() string { return strings.TrimPrefix(k.group+"/"+k.version, "/") }

// complete is an object of a list with its kind, which it does not say there.
func (k workloadKind) complete(text []byte) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	object["kind"] = json.RawMessage(fmt.Sprintf("%q", k.kind))
	object["apiVersion"] = json.RawMessage(fmt.Sprintf("%q", k.apiVersion()))
	return json.Marshal(object)
}
