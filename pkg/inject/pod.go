package inject

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/json"

	"understudy.mesh/pkg/inject/internal/skim"
)

// Pod is a pod that is read once for all that is asked about it.
type Pod struct {
	// Object has what [Decide] and [Settings] go by, and nothing else of the pod.
	Object *corev1.Pod
	view   *podView
}

// Read reads a pod's JSON, which nobody may change afterwards. An error says what is wrong with it.
func Read(raw []byte) (*Pod, error) {
	v, err := parsePod(raw)
	if err != nil {
		return nil, err
	}
	return &Pod{v.object(), v}, nil
}

// podView is what a decision and a patch go by of a pod. Whatever else is in it stays as it is: it is never written back.
type podView struct {
	Kind     string    `json:"kind"`
	Metadata *metadata `json:"metadata"`
	Spec     spec      `json:"spec"`

	raw         []byte
	hasMetadata bool
}

type metadata struct {
	Name            string            `json:"name"`
	GenerateName    string            `json:"generateName"`
	Namespace       string            `json:"namespace"`
	Labels          map[string]string `json:"labels"`
	Annotations     map[string]string `json:"annotations"`
	OwnerReferences []ownerReference  `json:"ownerReferences"`
}

type ownerReference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Controller bool   `json:"controller"`
}

type spec struct {
	InitContainers   []container      `json:"initContainers"`
	Containers       []container      `json:"containers"`
	Volumes          []named          `json:"volumes"`
	ImagePullSecrets []named          `json:"imagePullSecrets"`
	SecurityContext  *securityContext `json:"securityContext"`

	HostNetwork                   bool              `json:"hostNetwork"`
	OS                            *corev1.PodOS     `json:"os"`
	NodeSelector                  map[string]string `json:"nodeSelector"`
	TerminationGracePeriodSeconds *int64            `json:"terminationGracePeriodSeconds"`
}

type named struct {
	Name string `json:"name"`
}

// container is one of the application's, or one of ours of an earlier pass.
type container struct {
	Name            string           `json:"name"`
	Image           string           `json:"image"`
	Ports           []containerPort  `json:"ports"`
	RestartPolicy   string           `json:"restartPolicy"`
	SecurityContext *securityContext `json:"securityContext"`
	LivenessProbe   *handler         `json:"livenessProbe"`
	ReadinessProbe  *handler         `json:"readinessProbe"`
	StartupProbe    *handler         `json:"startupProbe"`
	Lifecycle       *struct {
		PostStart *handler `json:"postStart"`
		PreStop   *handler `json:"preStop"`
	} `json:"lifecycle"`
}

type securityContext struct {
	RunAsUser      *int64    `json:"runAsUser"`
	SeccompProfile *struct{} `json:"seccompProfile"`
}

// containerPort has its fields in the order in which Istio's ISTIO_META_POD_PORTS has them.
type containerPort struct {
	Name          string `json:"name,omitempty"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"`
}

// handler is a probe or a hook, and as JSON a value of ISTIO_KUBE_APP_PROBERS.
type handler struct {
	HTTPGet        *httpGet   `json:"httpGet,omitempty"`
	TCPSocket      *tcpSocket `json:"tcpSocket,omitempty"`
	GRPC           *grpcCheck `json:"grpc,omitempty"`
	TimeoutSeconds int32      `json:"timeoutSeconds,omitempty"`
}

type httpGet struct {
	Path        string             `json:"path,omitempty"`
	Port        intstr.IntOrString `json:"port"`
	Host        string             `json:"host,omitempty"`
	Scheme      string             `json:"scheme,omitempty"`
	HTTPHeaders []httpHeader       `json:"httpHeaders,omitempty"`
}

type httpHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type tcpSocket struct {
	Port intstr.IntOrString `json:"port"`
	Host string             `json:"host,omitempty"`
}

type grpcCheck struct {
	Port    int32   `json:"port"`
	Service *string `json:"service,omitempty"`
}

var viewShape = skim.Of(reflect.TypeFor[podView]())

// parsePod reads a pod as the API server and kubectl do: names of fields have a case.
func parsePod(raw []byte) (*podView, error) {
	var p podView
	kept, _, ok := viewShape.Skim(raw)
	if !ok || json.UnmarshalCaseSensitivePreserveInts(kept, &p) != nil {
		p = podView{}
		if err := json.UnmarshalCaseSensitivePreserveInts(raw, &p); err != nil {
			return nil, fmt.Errorf("read the pod: %w", err)
		}
	}
	p.raw = raw
	if p.hasMetadata = p.Metadata != nil; !p.hasMetadata {
		p.Metadata = &metadata{}
	}
	if len(p.Spec.Containers) == 0 {
		return nil, fmt.Errorf("read the pod: spec.containers: it is empty, or this is no pod")
	}
	return &p, nil
}

// object is the pod as Kubernetes' type, as far as it decides.
func (p *podView) object() *corev1.Pod {
	names := func(list []container) (out []corev1.Container) {
		for _, c := range list {
			out = append(out, corev1.Container{Name: c.Name})
		}
		return out
	}
	m, s := p.Metadata, p.Spec
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: p.Kind},
		ObjectMeta: metav1.ObjectMeta{Name: m.Name, GenerateName: m.GenerateName, Namespace: m.Namespace, Labels: m.Labels, Annotations: m.Annotations},
		Spec: corev1.PodSpec{
			HostNetwork: s.HostNetwork, OS: s.OS, NodeSelector: s.NodeSelector, TerminationGracePeriodSeconds: s.TerminationGracePeriodSeconds,
			InitContainers: names(s.InitContainers), Containers: names(s.Containers),
		},
	}
}

// lists are a pod's two lists of containers by the names of their fields.
func (p *podView) lists() map[string][]container {
	return map[string][]container{initContainers: p.Spec.InitContainers, containers: p.Spec.Containers}
}

// The fields of a pod's spec that hold containers.
const (
	initContainers = "initContainers"
	containers     = "containers"
)

// tree are a pod's lists as they are, whatever is in them: for what is merged or compared.
type tree struct {
	Spec struct {
		InitContainers []map[string]any `json:"initContainers"`
		Containers     []map[string]any `json:"containers"`
		Volumes        []map[string]any `json:"volumes"`
	} `json:"spec"`
}

// tree reads the pod again, as a whole.
func (p *podView) tree() (*tree, error) {
	var t tree
	if err := json.UnmarshalCaseSensitivePreserveInts(p.raw, &t); err != nil {
		return nil, fmt.Errorf("read the pod: %w", err)
	}
	return &t, nil
}

// sortedKeys are the keys of a map in their order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
