// Package kruise owns what is asked of OpenKruise's SidecarSets that exist: whether running pods can take the next one in place.
package kruise

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
)

// Difference is a field that differs between two SidecarSets.
type Difference struct {
	Field string // such as spec.containers[istio-proxy].image
	// InPlace says that OpenKruise changes it in running pods, or that pods do not have it; else only new pods get it.
	InPlace bool
}

// Diff compares the one that there is with the one that is to be, each as JSON. What the API server and Kruise's webhook add to the first
// does not count.
func Diff(before, after []byte) ([]Difference, error) {
	var specs [2]struct {
		Spec map[string]any `json:"spec"`
	}
	for i, text := range [][]byte{before, after} {
		if err := json.Unmarshal(text, &specs[i]); err != nil {
			return nil, fmt.Errorf("read a SidecarSet: %w", err)
		}
	}
	fields := differing("spec", specs[0].Spec, specs[1].Spec)
	slices.Sort(fields)
	var all []Difference
	for _, field := range fields {
		all = append(all, Difference{field, inPlace.MatchString(field)})
	}
	return all, nil
}

// inPlace are the images of containers, which Kruise changes in running pods, and what says how.
var inPlace = regexp.MustCompile(`^spec\.(containers\[[^]]*\]\.image|updateStrategy(\..*)?|injectionStrategy(\..*)?|revisionHistoryLimit)$`)

// defaulted are fields that the API server or Kruise fills in, with what that is. They are no difference if only one side has them.
var defaulted = map[string][]any{
	"terminationMessagePath": {"/dev/termination-log"}, "terminationMessagePolicy": {"File"}, "defaultMode": {420.0}, "protocol": {"TCP"},
	"apiVersion": {"v1"}, "type": {"", "RollingUpdate"}, "resources": {map[string]any{}}, "upgradeStrategy": {map[string]any{}},
	"emptyDir": {map[string]any{}}, "imagePullPolicy": {"IfNotPresent"}, "divisor": {"0"}, "revisionHistoryLimit": {10.0},
	"injectionStrategy": {map[string]any{}}, "podInjectPolicy": {"BeforeAppContainer"}, "shareVolumePolicy": {map[string]any{"type": "disabled"}},
	"shareVolumeDevicePolicy": {map[string]any{"type": "disabled"}}, "partition": {0.0}, "maxUnavailable": {1.0}, "priorityStrategy": {map[string]any{}},
}

// differing are the places below one at which two values differ.
func differing(at string, before, after any) (fields []string) {
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
			fields = append(fields, differing(at+"."+key, old, new)...)
		}
		return fields
	case []any:
		after, ok := after.([]any)
		if !ok || !named(before) || !named(after) {
			break
		}
		return differingByName(at, before, after)
	}
	if !reflect.DeepEqual(before, after) {
		return []string{at}
	}
	return nil
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
func differingByName(at string, before, after []any) (fields []string) {
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
		fields = append(fields, differing(fmt.Sprintf("%s[%v]", at, name), old, find(after, name))...)
	}
	for _, new := range after {
		if name := new.(map[string]any)["name"]; find(before, name) == nil {
			fields = append(fields, fmt.Sprintf("%s[%v]", at, name))
		}
	}
	return fields
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
