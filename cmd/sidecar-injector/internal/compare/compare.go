// Package compare owns in which fields two objects of Kubernetes differ, where one has been through an API server and the other has not.
package compare

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/contract"
)

// Difference is a field that two objects have otherwise; nil is that one has none.
type Difference struct {
	Field         string // such as spec.containers[istio-proxy].image
	Before, After any
}

// Fields are the differences below a place, sorted. What an API server fills in is none.
func Fields(at string, before, after any) []Difference {
	return sorted(differing(at, before, after))
}

func sorted(all []Difference) []Difference {
	slices.SortFunc(all, func(a, b Difference) int { return strings.Compare(a.Field, b.Field) })
	return all
}

// injected are the containers that an injection makes, Istio's or ours.
var injected = []string{contract.ProxyContainer, contract.SecondContainer, "istio-init", "istio-validation"}

// Injected reports whether a container of that name is one that an injection makes, Istio's or ours.
func Injected(name string) bool { return slices.Contains(injected, name) }

// Containers are the differences between the containers that an injection has put into a pod that runs and those of another one, as JSON; the
// proxy's come first.
func Containers(running *corev1.Pod, other []byte) ([]Difference, error) {
	text, err := json.Marshal(running)
	if err != nil {
		return nil, fmt.Errorf("write pod %s/%s: %w", running.Namespace, running.Name, err)
	}
	var lists [2][]any
	for i, pod := range [][]byte{text, other} {
		if lists[i], err = containers(pod); err != nil {
			return nil, fmt.Errorf("compare with pod %s/%s: %w", running.Namespace, running.Name, err)
		}
	}
	all := sorted(differingByName("", lists[0], lists[1]))
	var found []Difference
	for _, name := range injected {
		for _, d := range all {
			if below, ok := strings.CutPrefix(d.Field, "["+name+"]"); ok {
				d.Field = name + below
				found = append(found, d)
			}
		}
	}
	return found, nil
}

// accountVolume begins the name of what the API server mounts into each container.
const accountVolume = "kube-api-access-"

// containers are the injected ones, whichever list of the pod they are in, without the mount of the service account.
func containers(pod []byte) ([]any, error) {
	var p struct {
		Spec struct {
			InitContainers []map[string]any `json:"initContainers"`
			Containers     []map[string]any `json:"containers"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(pod, &p); err != nil {
		return nil, err
	}
	var found []any
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		if name, _ := c["name"].(string); Injected(name) {
			mounts, _ := c["volumeMounts"].([]any)
			mounts = slices.DeleteFunc(mounts, func(m any) bool {
				mount, _ := m.(map[string]any)
				volume, _ := mount["name"].(string)
				return strings.HasPrefix(volume, accountVolume)
			})
			if c["volumeMounts"] = mounts; len(mounts) == 0 {
				delete(c, "volumeMounts")
			}
			found = append(found, c)
		}
	}
	return found, nil
}

// defaulted are fields that the API server or Kruise fills in, with what that is. They are no difference if only one side has them.
var defaulted = map[string][]any{
	"terminationMessagePath": {"/dev/termination-log"}, "terminationMessagePolicy": {"File"}, "defaultMode": {420.0}, "protocol": {"TCP"},
	"apiVersion": {"v1"}, "type": {"", "RollingUpdate"}, "resources": {map[string]any{}}, "upgradeStrategy": {map[string]any{}},
	"emptyDir": {map[string]any{}}, "imagePullPolicy": {"IfNotPresent"}, "divisor": {"0"}, "revisionHistoryLimit": {10.0},
	"injectionStrategy": {map[string]any{}}, "podInjectPolicy": {"BeforeAppContainer"}, "shareVolumePolicy": {map[string]any{"type": "disabled"}},
	"shareVolumeDevicePolicy": {map[string]any{"type": "disabled"}}, "partition": {0.0}, "maxUnavailable": {1.0}, "priorityStrategy": {map[string]any{}},
	"scheme": {"HTTP"}, "successThreshold": {1.0}, "failureThreshold": {3.0}, "timeoutSeconds": {1.0}, "periodSeconds": {10.0}, "expirationSeconds": {3600.0},
}

// differing are the places below one at which two values differ.
func differing(at string, before, after any) (found []Difference) {
	switch before := before.(type) {
	case map[string]any:
		after, ok := after.(map[string]any)
		if !ok {
			break
		}
		keys := maps.Clone(before)
		maps.Copy(keys, after)
		for key := range keys {
			old, had := before[key]
			new, has := after[key]
			if had != has && isDefault(key, old, new) {
				continue
			}
			found = append(found, differing(at+"."+key, old, new)...)
		}
		return found
	case []any:
		after, ok := after.([]any)
		switch {
		case !ok:
		case named(before) && named(after):
			return differingByName(at, before, after)
		case sameInTurn(before, after):
			return nil
		}
	}
	if !reflect.DeepEqual(before, after) {
		return []Difference{{at, before, after}}
	}
	return nil
}

// sameInTurn reports whether the elements of two lists do not differ, whose place is all that they are known by.
func sameInTurn(before, after []any) bool {
	if len(before) != len(after) {
		return false
	}
	for i := range before {
		if len(differing("", before[i], after[i])) > 0 {
			return false
		}
	}
	return true
}

// isDefault reports whether a field that only one side has says what counts without it.
func isDefault(key string, old, new any) bool {
	for _, value := range defaulted[key] {
		if reflect.DeepEqual(old, value) || reflect.DeepEqual(new, value) {
			return true
		}
	}
	return false
}

// differingByName compares lists whose elements have names: containers, variables, volumes.
func differingByName(at string, before, after []any) (found []Difference) {
	find := func(list []any, name any) any {
		for _, e := range list {
			if e.(map[string]any)["name"] == name {
				return e
			}
		}
		return nil
	}
	for _, old := range before {
		name := old.(map[string]any)["name"]
		found = append(found, differing(fmt.Sprintf("%s[%v]", at, name), old, find(after, name))...)
	}
	for _, new := range after {
		if name := new.(map[string]any)["name"]; find(before, name) == nil {
			found = append(found, Difference{Field: fmt.Sprintf("%s[%v]", at, name), After: new})
		}
	}
	return found
}

func named(list []any) bool {
	for _, e := range list {
		object, ok := e.(map[string]any)
		if !ok || object["name"] == nil {
			return false
		}
	}
	return len(list) > 0
}
