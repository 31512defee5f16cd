package inject

import (
	"errors"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// KruiseVersion is a version of OpenKruise's API: SidecarSets of the two say the namespace in different places.
type KruiseVersion string

// The versions of apps.kruise.io that have SidecarSets; the second comes with Kruise 1.9.
const (
	KruiseV1alpha1 KruiseVersion = "v1alpha1"
	KruiseV1beta1  KruiseVersion = "v1beta1"
)

// SidecarSet is OpenKruise's object of that name, as far as an injection needs it (https://openkruise.io/docs/user-manuals/sidecarset).
type SidecarSet struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        kruiseMetadata `json:"metadata"`
	Spec            SidecarSetSpec `json:"spec"`
}

type kruiseMetadata struct {
	Name string `json:"name"`
}

// SidecarSetSpec says which pods get which containers.
type SidecarSetSpec struct {
	Namespace         string                        `json:"namespace,omitempty"`         // v1alpha1
	SpecificNamespace *specificNamespace            `json:"specificNamespace,omitempty"` // v1beta1
	Selector          *metav1.LabelSelector         `json:"selector"`
	UpdateStrategy    updateStrategy                `json:"updateStrategy"`
	InitContainers    []corev1.Container            `json:"initContainers,omitempty"`
	Containers        []sidecarContainer            `json:"containers"`
	Volumes           []corev1.Volume               `json:"volumes,omitempty"`
	ImagePullSecrets  []corev1.LocalObjectReference `json:"imagePullSecrets,omitempty"`
}

type specificNamespace struct {
	Namespace string `json:"namespace"`
}

type updateStrategy struct {
	Type           string             `json:"type"`
	Partition      intstr.IntOrString `json:"partition"`
	MaxUnavailable intstr.IntOrString `json:"maxUnavailable"`
}

type sidecarContainer struct {
	corev1.Container  `json:",inline"`
	PodInjectPolicy   string            `json:"podInjectPolicy"`
	UpgradeStrategy   upgradeStrategy   `json:"upgradeStrategy"`
	ShareVolumePolicy shareVolumePolicy `json:"shareVolumePolicy"`
}

type upgradeStrategy struct {
	UpgradeType          string `json:"upgradeType"`
	HotUpgradeEmptyImage string `json:"hotUpgradeEmptyImage"`
}

type shareVolumePolicy struct {
	Type string `json:"type"`
}

// SidecarSetOf says for which pods a SidecarSet is to be.
type SidecarSetOf struct {
	API      KruiseVersion
	Name     string // of the SidecarSet, which is in no namespace
	Selector *metav1.LabelSelector
	// Template is the workload's pod as JSON; nil: it is for whatever the selector finds, with label app as the workload's name.
	Template []byte
}

// The ConfigMap of ASM's manual that has the cluster's id, so that it is not repeated in each SidecarSet.
const (
	clusterProfile    = "ack-cluster-profile"
	clusterProfileKey = "clusterid"
)

// NewSidecarSet is what Patch does to a pod with slots, as an object by which OpenKruise does it. Warnings name what is left to the user,
// since a SidecarSet changes nothing else of a pod. An error is for the user.
func NewSidecarSet(of SidecarSetOf, s *profile.Settings, env Environment) (set *SidecarSet, warnings []string, err error) {
	if !s.Hot() {
		return nil, nil, errors.New("hotUpgrade.emptyImage is empty: set it in a SidecarProfile; a SidecarSet is for hot upgrades")
	}
	if *s.Proxy.Image == "" {
		return nil, nil, errNoImage
	}
	p := &podView{Metadata: &metadata{}}
	if of.Template != nil {
		if p, err = parsePod(of.Template); err != nil {
			return nil, nil, err
		}
	}
	b := newBuilder(p, s, env)
	b.native = false // Kruise has no slots among native sidecars
	b.findIDs()
	spec, err := b.sidecarSetSpec(of)
	if err != nil {
		return nil, nil, err
	}
	b.warnOfTemplate(of)
	set = &SidecarSet{TypeMeta: metav1.TypeMeta{APIVersion: "apps.kruise.io/" + string(of.API), Kind: "SidecarSet"}, Metadata: kruiseMetadata{of.Name}, Spec: *spec}
	return set, b.warnings, nil
}

func (b *builder) sidecarSetSpec(of SidecarSetOf) (*SidecarSetSpec, error) {
	slot, err := b.kruiseSlot(of)
	if err != nil {
		return nil, err
	}
	spec := &SidecarSetSpec{
		Selector: of.Selector,
		// One pod at a time: an image that cannot be pulled stops there.
		UpdateStrategy: updateStrategy{Type: "RollingUpdate", Partition: intstr.FromInt32(0), MaxUnavailable: intstr.FromInt32(1)},
		Containers:     []sidecarContainer{slot},
	}
	if of.API == KruiseV1beta1 {
		spec.SpecificNamespace = &specificNamespace{b.env.Namespace.Name}
	} else {
		spec.Namespace = b.env.Namespace.Name
	}
	if c := b.initContainer(); c != nil {
		spec.InitContainers = []corev1.Container{*c}
	}
	for _, v := range b.ownVolumes() {
		spec.Volumes = append(spec.Volumes, corev1.Volume{Name: v.name, VolumeSource: v.source})
	}
	users, err := ofAnnotation[corev1.Volume](b, userVolumeAnnotation, func(v *corev1.Volume) *string { return &v.Name })
	if err != nil {
		return nil, err
	}
	spec.Volumes = append(spec.Volumes, users...)
	for _, name := range b.settings.Proxy.ImagePullSecrets {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, corev1.LocalObjectReference{Name: name})
	}
	return spec, nil
}

// kruiseSlot is the container of which Kruise makes two.
func (b *builder) kruiseSlot(of SidecarSetOf) (sidecarContainer, error) {
	c := b.proxy(contract.ProxyContainer)
	var err error
	if c.VolumeMounts, err = b.mounts(); err != nil {
		return sidecarContainer{}, err
	}
	c.Env = b.kruiseEnv(c.Env, of.Template == nil)
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		b.warn("proxy.lifecycle: preStop is left out: both slots would run it, the empty one too, and every upgrade would wait for it")
		c.Lifecycle.PreStop = nil
	}
	return sidecarContainer{
		Container: *c,
		// The kubelet starts the application when the postStart hooks of both slots are done.
		PodInjectPolicy:   "BeforeAppContainer",
		UpgradeStrategy:   upgradeStrategy{"HotUpgrade", *b.settings.HotUpgrade.EmptyImage},
		ShareVolumePolicy: shareVolumePolicy{"disabled"}, // the application's volumes are none of its business
	}, nil
}

// kruiseEnv is the environment without what Kruise sets itself. The id of the cluster is where ASM's manual has it; the name of a workload that is not
// known is in the pod's label.
func (b *builder) kruiseEnv(env variables, anyWorkload bool) []corev1.EnvVar {
	env = slices.DeleteFunc(slices.Clone(env), func(e corev1.EnvVar) bool {
		return e.Name == contract.VersionVariable || e.Name == contract.VersionAltVariable || e.Name == contract.AppsVariable && e.Value == ""
	})
	at := slices.IndexFunc(env, func(e corev1.EnvVar) bool { return e.Name == clusterVariable })
	env[at] = corev1.EnvVar{Name: clusterVariable, ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: clusterProfile}, Key: clusterProfileKey,
	}}}
	if anyWorkload {
		var name variables
		name.field(workloadVariable, "metadata.labels['app']")
		env = slices.Insert(env, at+1, name...)
	}
	return env
}

// warnOfTemplate says what the workload itself has to have: a SidecarSet adds containers and volumes only.
func (b *builder) warnOfTemplate(of SidecarSetOf) {
	if of.Template == nil {
		return
	}
	labels := b.pod.Metadata.Labels
	for _, key := range slices.Sorted(maps.Keys(of.Selector.MatchLabels)) {
		if value := of.Selector.MatchLabels[key]; labels[key] != value {
			b.warn("the pod template has no label %s=%s, by which the SidecarSet finds its pods: add it", key, value)
		}
	}
	if b.pod.Metadata.Labels[tlsLabel] == "" && !b.files() {
		b.warn("the pod template has no label %s=istio: without it peers send plain text", tlsLabel)
	}
	for _, c := range slices.Concat(b.pod.Spec.InitContainers, b.pod.Spec.Containers) {
		if isOurs(c.Name) {
			b.warn("the pod template has a container %s of its own: the SidecarSet does not merge it, and it is there twice", c.Name)
		}
		if probe := c.LivenessProbe; probe != nil && (probe.HTTPGet != nil || probe.TCPSocket != nil || probe.GRPC != nil) {
			b.warn("container %s: a SidecarSet rewrites no probes: under STRICT mutual TLS the kubelet's are refused; exclude their port from capture (traffic.sidecar.istio.io/excludeInboundPorts)", c.Name)
		}
	}
}
