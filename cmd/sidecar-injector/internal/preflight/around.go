package preflight

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/inject"

	"understudy.mesh/cmd/sidecar-injector/internal/compare"
)

// injection is what an injector says that it has put into a pod, in the annotation sidecar.istio.io/status.
type injection struct {
	InitContainers   []string `json:"initContainers"`
	Containers       []string `json:"containers"`
	Volumes          []string `json:"volumes"`
	ImagePullSecrets []string `json:"imagePullSecrets"`
}

// pod is what of a pod an injection may change besides its own containers.
type pod struct {
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
		Labels      map[string]string `json:"labels"`
	} `json:"metadata"`
	Spec struct {
		InitContainers   []container    `json:"initContainers"`
		Containers       []container    `json:"containers"`
		Volumes          []any          `json:"volumes"`
		ImagePullSecrets []any          `json:"imagePullSecrets"`
		SecurityContext  map[string]any `json:"securityContext"`
		DNSConfig        map[string]any `json:"dnsConfig"`
	} `json:"spec"`
}

type container struct {
	Name         string `json:"name"`
	VolumeMounts []struct {
		Name string `json:"name"`
	} `json:"volumeMounts"`
}

// compareAround notes in what the pods differ around the proxy's containers: volumes, secrets and metadata of the injection, and what counts for the whole
// pod. What the workload would lack is a blocker.
func (r *Report) compareAround(running *corev1.Pod, made []byte) error {
	text, err := json.Marshal(running)
	if err != nil {
		return fmt.Errorf("write pod %s/%s: %w", running.Namespace, running.Name, err)
	}
	var before, after pod
	if err = json.Unmarshal(text, &before); err == nil {
		err = json.Unmarshal(made, &after)
	}
	if err != nil {
		return fmt.Errorf("compare with pod %s/%s: %w", running.Namespace, running.Name, err)
	}
	istios, ours := before.injection(), after.injection()
	r.Blockers = append(r.Blockers, lacking(&before, &after, istios)...)
	both := injection{Volumes: slices.Concat(istios.Volumes, ours.Volumes), ImagePullSecrets: slices.Concat(istios.ImagePullSecrets, ours.ImagePullSecrets)}
	all := compare.Fields("", before.fields(both), after.fields(both))
	for i := range all {
		all[i].Field = strings.TrimPrefix(all[i].Field, ".")
	}
	r.differ(all)
	return nil
}

// lacking is what the application would miss of Istio's own templates: containers that they add, and volumes of theirs that it mounts.
func lacking(before, after *pod, istios injection) (found []string) {
	for _, name := range slices.Concat(istios.InitContainers, istios.Containers) {
		if !compare.Injected(name) && !after.has(name) {
			found = append(found, fmt.Sprintf("Istio's templates add the container %s, and ours would not", name))
		}
	}
	for _, c := range slices.Concat(before.Spec.InitContainers, before.Spec.Containers) {
		if compare.Injected(c.Name) || !after.has(c.Name) {
			continue
		}
		for _, m := range c.VolumeMounts {
			if slices.Contains(istios.Volumes, m.Name) && !slices.ContainsFunc(after.Spec.Volumes, isNamed(m.Name)) {
				found = append(found, fmt.Sprintf("container %s mounts the volume %s, which Istio's templates add, and ours would not", c.Name, m.Name))
			}
		}
	}
	return found
}

// injection is what the pod's annotation says. One that cannot be read says nothing.
func (p *pod) injection() (by injection) {
	_ = json.Unmarshal([]byte(p.Metadata.Annotations[inject.AnnotationStatus]), &by)
	return by
}

// has reports whether the pod has a container.
func (p *pod) has(name string) bool {
	return slices.ContainsFunc(slices.Concat(p.Spec.InitContainers, p.Spec.Containers), func(c container) bool { return c.Name == name })
}

func isNamed(name string) func(any) bool {
	return func(v any) bool {
		object, _ := v.(map[string]any)
		return object["name"] == name
	}
}

// fields are those of a pod that are compared, with no more of its lists than an injection has put there.
func (p *pod) fields(by injection) map[string]any {
	fields := map[string]any{}
	named := func(list []any, names []string) (found []any) {
		for _, v := range list {
			if slices.ContainsFunc(names, func(name string) bool { return isNamed(name)(v) }) {
				found = append(found, v)
			}
		}
		return found
	}
	of := func(metadata map[string]string) map[string]any {
		found := map[string]any{}
		for key, value := range metadata {
			if ofMesh.MatchString(key) && !ofInjector.MatchString(key) {
				found[key] = value
			}
		}
		return found
	}
	fields["annotations"], fields["labels"] = of(p.Metadata.Annotations), of(p.Metadata.Labels)
	for key, list := range map[string][]any{"volumes": named(p.Spec.Volumes, by.Volumes), "imagePullSecrets": named(p.Spec.ImagePullSecrets, by.ImagePullSecrets)} {
		if list != nil {
			fields[key] = list
		}
	}
	for key, object := range map[string]map[string]any{"securityContext": p.Spec.SecurityContext, "dnsConfig": p.Spec.DNSConfig} {
		if len(object) > 0 { // the API server writes {} for none
			fields[key] = object
		}
	}
	return fields
}

// ofMesh are annotations and labels that an injection makes, and that something goes by: Istio's, Prometheus', Multus', kubectl's. Others come from
// whoever changes pods.
var ofMesh = regexp.MustCompile(`^(([^/]+\.)?istio\.io/|prometheus\.io/|k8s\.v1\.cni\.cncf\.io/networks$|kubectl\.kubernetes\.io/default-)`)

// ofInjector are those by which an injector knows its own pods.
var ofInjector = regexp.MustCompile(`^(sidecar\.istio\.io/status|istio\.io/rev)$`)
