package inject

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/profile"
)

// Annotations of a pod by which the proxy gets volumes of the user's, as JSON: a list, or a map by name.
const (
	userVolumeAnnotation      = "sidecar.istio.io/userVolume"
	userVolumeMountAnnotation = "sidecar.istio.io/userVolumeMount"
)

const (
	meshDir         = "/etc/understudy/mesh"
	wasmSecretsDir  = "/etc/istio/wasm-secrets"
	tokenExpiration = 43200 // seconds, Istio's
)

// volume is one of ours, and where the proxy has it.
type volume struct {
	name, path string
	readOnly   bool
	source     corev1.VolumeSource
}

// ownVolumes are those of every pod, and those that the settings ask for.
func (b *builder) ownVolumes() []volume {
	s := b.settings
	empty := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	var optional *bool
	if b.files() {
		optional = new(true)
	}
	all := []volume{
		{"workload-socket", "/var/run/secrets/workload-spiffe-uds", false, empty},
		{"credential-socket", "/var/run/secrets/credential-uds", false, empty},
		{"workload-certs", "/var/run/secrets/workload-spiffe-credentials", false, empty},
		{"istio-envoy", "/etc/istio/proxy", false, memory},
		{"istio-data", "/var/lib/istio/data", false, empty},
		{"istio-podinfo", "/etc/istio/pod", false, podInfo()},
		{"istiod-ca-cert", "/var/run/secrets/istio", false, configMap("istio-ca-root-cert", optional)},
		{"istio-ca-crl", "/var/run/secrets/istio/crl", false, configMap("istio-ca-crl", new(true))},
	}
	if *s.Preset != profile.PresetASM { // which has the service account's own token do
		all = append(all, volume{"istio-token", "/var/run/secrets/tokens", false, token()})
	}
	if b.files() {
		all = append(all, volume{"mesh", meshDir, true, configMap(*s.ControlPlane.ConfigMap, nil)})
	}
	if b.hot {
		all = append(all, volume{"asm-hotupgrade-data", *s.HotUpgrade.HandoffDir, false, empty})
	}
	if len(s.Wasm.PullSecrets) > 0 {
		all = append(all, volume{"istio-wasm-secrets", wasmSecretsDir, true, pullSecrets(s.Wasm.PullSecrets)})
	}
	return all
}

func configMap(name string, optional *bool) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: optional}}
}

func podInfo() corev1.VolumeSource {
	file := func(name string) corev1.DownwardAPIVolumeFile {
		return corev1.DownwardAPIVolumeFile{Path: name, FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata." + name}}
	}
	return corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{file("labels"), file("annotations")}}}
}

func token() corev1.VolumeSource {
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{
		ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: new(int64(tokenExpiration)), Path: "istio-token"},
	}}}}
}

// pullSecrets are registries' credentials; one that is not there holds up no pod.
func pullSecrets(names []string) corev1.VolumeSource {
	var sources []corev1.VolumeProjection
	for _, name := range names {
		sources = append(sources, corev1.VolumeProjection{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Optional: new(true),
			Items: []corev1.KeyToPath{{Key: corev1.DockerConfigJsonKey, Path: name + "/" + corev1.DockerConfigJsonKey}},
		}})
	}
	return corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}}
}

// mounts are what the proxy has of volumes, the user's last.
func (b *builder) mounts() ([]corev1.VolumeMount, error) {
	var mounts []corev1.VolumeMount
	for _, v := range b.ownVolumes() {
		mounts = append(mounts, corev1.VolumeMount{Name: v.name, MountPath: v.path, ReadOnly: v.readOnly})
	}
	users, err := ofAnnotation[corev1.VolumeMount](b, userVolumeMountAnnotation, func(m *corev1.VolumeMount) *string { return &m.Name })
	if err != nil {
		return nil, err
	}
	for _, m := range users {
		if i := slices.IndexFunc(mounts, func(own corev1.VolumeMount) bool { return own.MountPath == m.MountPath }); i >= 0 {
			return nil, fmt.Errorf("annotation %s: volume %q is to be at %s, where the proxy has its volume %q: choose another mountPath", userVolumeMountAnnotation, m.Name, m.MountPath, mounts[i].Name)
		}
		mounts = append(mounts, m)
	}
	return mounts, nil
}

// ofAnnotation reads a list of an annotation, or a map by name.
func ofAnnotation[T any](b *builder, annotation string, name func(*T) *string) ([]T, error) {
	text := b.pod.Metadata.Annotations[annotation]
	if text == "" {
		return nil, nil
	}
	var list []T
	err := json.Unmarshal([]byte(text), &list)
	if err != nil {
		var byName map[string]T
		if json.Unmarshal([]byte(text), &byName) != nil {
			return nil, fmt.Errorf("annotation %s: %q: want a JSON list such as [{\"name\": \"my-volume\", ...}]: %w", annotation, text, err)
		}
		for _, key := range sortedKeys(byName) {
			v := byName[key]
			*name(&v) = key
			list = append(list, v)
		}
	}
	for i := range list {
		if *name(&list[i]) == "" {
			return nil, fmt.Errorf("annotation %s: %q: element %d has no name", annotation, text, i)
		}
	}
	return list, nil
}

// volumes adds those that the pod does not have. One of the same name must be the same.
func (b *builder) volumes() error {
	users, err := ofAnnotation[corev1.Volume](b, userVolumeAnnotation, func(v *corev1.Volume) *string { return &v.Name })
	if err != nil {
		return err
	}
	var want []element
	for i, v := range b.pod.Spec.Volumes {
		if b.earlier == nil || !slices.Contains(b.earlier.Volumes, v.Name) {
			want = append(want, element{at: i})
		}
	}
	add := func(v corev1.Volume, whose string) error {
		at := slices.IndexFunc(want, func(e element) bool { return e.at != absent && b.pod.Spec.Volumes[e.at].Name == v.Name })
		switch {
		case slices.Contains(b.own.Volumes, v.Name):
			return fmt.Errorf("annotation %s: volume %q: the proxy has one of that name; choose another", userVolumeAnnotation, v.Name)
		case at < 0:
			want = append(want, element{absent, v})
			b.own.Volumes = append(b.own.Volumes, v.Name)
			return nil
		}
		t, err := b.pod.tree()
		if err != nil {
			return err
		}
		if theirs := t.Spec.Volumes[want[at].at]; !covers(theirs, generic(v)) {
			return fmt.Errorf("volume %q: the pod's is %s, and %s is %s: rename the pod's", v.Name, asJSON(theirs), whose, asJSON(v))
		}
		return nil
	}
	for _, v := range b.ownVolumes() {
		if err := add(corev1.Volume{Name: v.name, VolumeSource: v.source}, "the proxy's"); err != nil {
			return err
		}
	}
	for _, v := range users {
		if err := add(v, "that of annotation "+userVolumeAnnotation); err != nil {
			return err
		}
	}
	b.ops.list("/spec/volumes", len(b.pod.Spec.Volumes), want)
	return nil
}

// pullSecrets adds the names of secrets for the images of the proxy.
func (b *builder) pullSecrets() {
	var want []element
	for i, secret := range b.pod.Spec.ImagePullSecrets {
		if b.earlier == nil || !slices.Contains(b.earlier.ImagePullSecrets, secret.Name) {
			want = append(want, element{at: i})
		}
	}
	for _, name := range b.settings.Proxy.ImagePullSecrets {
		if !slices.ContainsFunc(want, func(e element) bool { return e.at != absent && b.pod.Spec.ImagePullSecrets[e.at].Name == name }) && !slices.Contains(b.own.ImagePullSecrets, name) {
			want = append(want, element{absent, named{name}})
			b.own.ImagePullSecrets = append(b.own.ImagePullSecrets, name)
		}
	}
	b.ops.list("/spec/imagePullSecrets", len(b.pod.Spec.ImagePullSecrets), want)
}
