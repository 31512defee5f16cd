package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"

	"understudy.mesh/pkg/contract"
)

// overridesAnnotation keeps them.
const overridesAnnotation = "proxy.istio.io/overrides"

// overrides is what the user has said of our containers by writing ones of their names. It is the annotation
// proxy.istio.io/overrides in Istio's form.
type overrides struct {
	Containers     []map[string]any `json:"containers,omitempty"`
	InitContainers []map[string]any `json:"initContainers,omitempty"`
}

// findUser finds the user's containers: in the pod, or where an earlier pass has kept them.
func (b *builder) findUser() error {
	if b.earlier != nil {
		text := b.pod.Metadata.Annotations[overridesAnnotation]
		if text == "" {
			return nil
		}
		if err := kjson.UnmarshalCaseSensitivePreserveInts([]byte(text), &b.user); err != nil {
			return fmt.Errorf("annotation %s: %q: want what an injector has written there: %w", overridesAnnotation, text, err)
		}
		return nil
	}
	slot := func(c container) bool { return isSlot(c.Name) }
	if !slices.ContainsFunc(b.pod.Spec.Containers, slot) && !slices.ContainsFunc(b.pod.Spec.InitContainers, slot) {
		return nil
	}
	t, err := b.pod.tree()
	if err != nil {
		return err
	}
	for i, c := range b.pod.Spec.Containers {
		if slot(c) {
			b.user.Containers = append(b.user.Containers, b.wish(t.Spec.Containers[i], "container "))
		}
	}
	for i, c := range b.pod.Spec.InitContainers {
		if slot(c) {
			b.user.InitContainers = append(b.user.InitContainers, b.wish(t.Spec.InitContainers[i], "init container "))
		}
	}
	return nil
}

const (
	autoImage        = "auto" // of a container that leaves the image to the injector
	accountMountPath = "/var/run/secrets/kubernetes.io/serviceaccount"
)

// wish is a container without what is not the user's word: the API server's defaults, the mount of the service account, and what
// a LimitRange has put there.
func (b *builder) wish(c map[string]any, kind string) map[string]any {
	c = maps.Clone(c)
	image, _ := c["image"].(string)
	if c["imagePullPolicy"] == defaultPullPolicy(image) {
		delete(c, "imagePullPolicy")
	}
	if image == autoImage || image == "" {
		delete(c, "image")
	}
	delete(c, "restartPolicy") // says only in which list it is
	for field, byDefault := range map[string]string{"terminationMessagePath": corev1.TerminationMessagePathDefault, "terminationMessagePolicy": string(corev1.TerminationMessageReadFile)} {
		if c[field] == byDefault {
			delete(c, field)
		}
	}
	if mounts, ok := c["volumeMounts"].([]any); ok {
		mounts = slices.DeleteFunc(slices.Clone(mounts), func(m any) bool { return at(m, "mountPath") == accountMountPath })
		if c["volumeMounts"] = mounts; len(mounts) == 0 {
			delete(c, "volumeMounts")
		}
	}
	if resources, ok := c["resources"].(map[string]any); ok {
		name, _ := c["name"].(string)
		if c["resources"] = withoutLimitRange(resources, b.pod.Metadata.Annotations[limitRangerAnnotation], kind+name); len(c["resources"].(map[string]any)) == 0 {
			delete(c, "resources")
		}
	}
	return c
}

// defaultPullPolicy is what the API server says of an image of which the user says nothing.
func defaultPullPolicy(image string) string {
	name := image[strings.LastIndex(image, "/")+1:]
	_, tag, tagged := strings.Cut(name, ":")
	if strings.Contains(name, "@") || tagged && tag != "latest" {
		return string(corev1.PullIfNotPresent)
	}
	return string(corev1.PullAlways)
}

// limitRangerAnnotation is where the API server says what it has taken from a LimitRange:
// "LimitRanger plugin set: cpu, memory request for container a; cpu limit for init container b".
const (
	limitRangerAnnotation = "kubernetes.io/limit-ranger"
	limitRangerPrefix     = "LimitRanger plugin set: "
)

func withoutLimitRange(resources map[string]any, said, container string) map[string]any {
	out := maps.Clone(resources)
	for clause := range strings.SplitSeq(strings.TrimPrefix(said, limitRangerPrefix), "; ") {
		for _, kind := range []string{"request", "limit"} {
			names, of, ok := strings.Cut(clause, " "+kind+" for ")
			given, is := out[kind+"s"].(map[string]any)
			if !ok || of != container || !is {
				continue
			}
			given = maps.Clone(given)
			for name := range strings.SplitSeq(names, ", ") {
				delete(given, name)
			}
			if out[kind+"s"] = given; len(given) == 0 {
				delete(out, kind+"s")
			}
		}
	}
	return out
}

// text is the annotation, empty if there is nothing to be kept.
func (o overrides) text() string {
	says := func(c map[string]any) bool { return len(c) > 1 } // more than its name
	kept := overrides{Containers: keep(o.Containers, says), InitContainers: keep(o.InitContainers, says)}
	if len(kept.Containers)+len(kept.InitContainers) == 0 {
		return ""
	}
	return asJSON(kept)
}

func keep(list []map[string]any, says func(map[string]any) bool) (kept []map[string]any) {
	for _, c := range list {
		if says(c) {
			kept = append(kept, c)
		}
	}
	return kept
}

// of is what the user says of a slot. Both are the same, but for the image of the second.
func (o overrides) of(slot string) map[string]any {
	find := func(name string) map[string]any {
		for _, c := range slices.Concat(o.Containers, o.InitContainers) {
			if c["name"] == name {
				return c
			}
		}
		return nil
	}
	said := find(slot)
	if said == nil && slot != contract.ProxyContainer {
		if said = maps.Clone(find(contract.ProxyContainer)); said != nil {
			delete(said, "image")
			said["name"] = slot
		}
	}
	return said
}

func (o overrides) runAsUser() *int64 {
	if id, ok := at(o.of(contract.ProxyContainer)["securityContext"], "runAsUser").(int64); ok {
		return &id
	}
	return nil
}

// merge is a container with what the user says of it.
func (o overrides) merge(c *corev1.Container) (any, error) {
	said := o.of(c.Name)
	if len(said) <= 1 {
		return c, nil
	}
	merged := generic(c).(map[string]any)
	for field, value := range said {
		now := merged[field]
		switch key := mergeKeys[field]; {
		case value == nil:
			delete(merged, field)
		case key != "" && now != nil:
			list, ok := value.([]any)
			if !ok {
				return nil, fmt.Errorf("container %s: %s is no list", c.Name, field)
			}
			merged[field] = mergeList(now.([]any), list, key)
		case field == "resources" || field == "securityContext":
			merged[field] = mergeMap(now, value)
		case field == "lifecycle": // a hook is of one kind only
			hooks, ok := value.(map[string]any)
			if !ok {
				return nil, fmt.Errorf("container %s: lifecycle is no object", c.Name)
			}
			all := map[string]any{}
			if before, ok := now.(map[string]any); ok {
				maps.Copy(all, before)
			}
			maps.Copy(all, hooks)
			merged[field] = all
		default:
			merged[field] = value
		}
	}
	return merged, nil
}

// mergeKeys are by what elements of a container's lists are the same, as for kubectl patch.
var mergeKeys = map[string]string{"env": "name", "volumeMounts": "mountPath", "ports": "containerPort", "volumeDevices": "devicePath"}

func mergeList(now, more []any, key string) []any {
	out := slices.Clone(now)
	for _, v := range more {
		if i := slices.IndexFunc(out, func(e any) bool { return at(e, key) != nil && at(e, key) == at(v, key) }); i >= 0 {
			out[i] = v
		} else {
			out = append(out, v)
		}
	}
	return out
}

func mergeMap(now, more any) any {
	to, ok := now.(map[string]any)
	from, ok2 := more.(map[string]any)
	if !ok || !ok2 {
		return more
	}
	out := maps.Clone(to)
	for key, value := range from {
		if value == nil {
			delete(out, key)
		} else {
			out[key] = mergeMap(out[key], value)
		}
	}
	return out
}

// at is a field of an object, nil if it is none.
func at(v any, field string) any {
	object, _ := v.(map[string]any)
	return object[field]
}

// generic is v as it is in a tree.
func generic(v any) (out any) {
	text, err := json.Marshal(v)
	if err == nil {
		err = kjson.UnmarshalCaseSensitivePreserveInts(text, &out)
	}
	if err != nil {
		panic(err) // of a type of Kubernetes' API
	}
	return out
}

// covers reports whether theirs says what ours does, and nothing else but the API server's defaults.
func covers(theirs, ours any) bool {
	switch ours := ours.(type) {
	case map[string]any:
		object, ok := theirs.(map[string]any)
		for key, value := range ours {
			ok = ok && covers(object[key], value)
		}
		for key, value := range object {
			_, both := ours[key]
			ok = ok && (both || key == "defaultMode" && value == int64(corev1.ConfigMapVolumeSourceDefaultMode) || key == "apiVersion" && value == "v1")
		}
		return ok
	case []any:
		list, ok := theirs.([]any)
		return ok && slices.EqualFunc(list, ours, covers)
	}
	return theirs == ours
}
