package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Workload is what makes a pod: its own name and kind, if nothing does.
type Workload struct{ APIVersion, Kind, namespace, Name string }

// variables is an environment in its order. A name is in it once.
type variables []corev1.EnvVar

func (v *variables) add(name, value string) {
	*v = append(*v, corev1.EnvVar{Name: name, Value: value})
}

// addSet is add for a value that may be none.
func (v *variables) addSet(name, value string) {
	if value != "" {
		v.add(name, value)
	}
}

func (v *variables) field(name, path string) {
	*v = append(*v, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}})
}

func (v variables) has(name string) bool {
	return slices.ContainsFunc(v, func(e corev1.EnvVar) bool { return e.Name == name })
}

// proxyEnv is the environment of a slot.
func (b *builder) proxyEnv(slot string) []corev1.EnvVar {
	s := b.settings
	var v variables
	if *s.Preset == profile.PresetASM {
		v.add("JWT_POLICY", "first-party-jwt")
	}
	if !b.files() {
		v.add("PILOT_CERT_PROVIDER", "istiod")
		v.add("CA_ADDR", *s.ControlPlane.CAAddress)
	}
	v.field("POD_NAME", "metadata.name")
	v.field("POD_NAMESPACE", "metadata.namespace")
	v.field("POD_UID", "metadata.uid")
	v.field("INSTANCE_IP", "status.podIP")
	v.field("SERVICE_ACCOUNT", "spec.serviceAccountName")
	v.field("HOST_IP", "status.hostIP")
	v = append(v, corev1.EnvVar{Name: "ISTIO_CPU_LIMIT", ValueFrom: &corev1.EnvVarSource{
		ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"},
	}})
	v.add(contract.ConfigVariable, *s.Proxy.Config)
	ports, apps := b.applicationPorts()
	v.add(contract.PodPortsVariable, asJSON(ports))
	v.add(contract.AppsVariable, strings.Join(apps, ","))
	b.addMetadata(&v)
	if b.hot {
		v.field(contract.VersionVariable, "metadata.annotations['"+contract.VersionAnnotation+slot+"']")
		v.field(contract.VersionAltVariable, "metadata.annotations['"+contract.VersionAltAnnotation+slot+"']")
	}
	if len(b.probes) > 0 {
		v.add(contract.ProbersVariable, asJSON(b.probes))
	}
	v.addSet(contract.PrometheusVariable, b.scrape)
	v.add("ISTIO_META_MESH_ID", *s.ControlPlane.MeshID)
	v.add("TRUST_DOMAIN", *s.ControlPlane.TrustDomain)
	b.addUsers(&v)
	if *s.Init.CNI && !v.has(contract.DualStackVariable) { // istio-cni's default is false, that of istio-init and istio-validation true
		v.add(contract.DualStackVariable, "true")
	}
	v.add(contract.DrainVariable, strconv.Itoa(int(s.Proxy.TerminationDrainDuration.Seconds())))
	b.addDNS(&v)
	for _, name := range slices.Sorted(maps.Keys(b.env.Variables)) {
		if !v.has(name) {
			v.add(name, b.env.Variables[name])
		}
	}
	return v
}

// addMetadata adds what the control plane is told of the pod.
func (b *builder) addMetadata(v *variables) {
	s := b.settings
	v.add(clusterVariable, cmp.Or(b.env.Variables[clusterVariable], *s.ControlPlane.ClusterID))
	v.field("ISTIO_META_NODE_NAME", "spec.nodeName")
	v.add(contract.ModeVariable, string(*s.Capture.Mode))
	v.addSet(networkVariable, b.network())
	w := b.workload()
	v.addSet(workloadVariable, w.Name)
	if w.Name != "" && w.APIVersion != "" {
		v.add("ISTIO_META_OWNER", fmt.Sprintf("kubernetes://apis/%s/namespaces/%s/%ss/%s", w.APIVersion, w.namespace, strings.ToLower(w.Kind), w.Name))
	}
	if _, said := s.Proxy.Env[contract.ReleaseVariable]; !said && !b.files() {
		v.addSet(contract.ReleaseVariable, b.env.IstioVersion)
	}
}

// Variables that the webhook's URL or Kruise may take from elsewhere.
const (
	workloadVariable = "ISTIO_META_WORKLOAD_NAME"
	clusterVariable  = "ISTIO_META_CLUSTER_ID"
	networkVariable  = "ISTIO_META_NETWORK"
)

func (b *builder) network() string {
	return cmp.Or(b.env.Variables[networkVariable], *b.settings.ControlPlane.Network)
}

// sharedEnv is what capture and proxy both go by.
func (b *builder) sharedEnv() []corev1.EnvVar {
	var v variables
	b.addUsers(&v)
	b.addDNS(&v)
	return v
}

// addUsers adds proxy.env. What is there already is ours.
func (b *builder) addUsers(v *variables) {
	for _, name := range slices.Sorted(maps.Keys(b.settings.Proxy.Env)) {
		if v.has(name) {
			b.warn("proxy.env: %s has no effect: the injector sets it by a setting of its own", name)
			continue
		}
		v.add(name, b.settings.Proxy.Env[name])
	}
}

func (b *builder) addDNS(v *variables) {
	if *b.settings.DNS.AutoAllocate {
		v.add(contract.DNSAllocateVariable, "true")
	}
	if *b.settings.DNS.Capture {
		v.add(contract.DNSCaptureVariable, "true")
	}
}

// applications are those of a list of containers that are neither ours nor the user's word about ours.
func (b *builder) applications(list []container) []container {
	return slices.DeleteFunc(slices.Clone(list), func(c container) bool { return isOurs(c.Name) })
}

// isSlot reports whether a container is one of the proxy's.
func isSlot(name string) bool {
	return name == contract.ProxyContainer || name == contract.SecondContainer
}

// isOurs reports whether the injector gives a container that name.
func isOurs(name string) bool { return isSlot(name) || name == initName || name == validationName }

// applicationPorts are all ports of the application's containers, and the names of those.
func (b *builder) applicationPorts() (ports []containerPort, names []string) {
	ports = []containerPort{}
	for _, c := range b.applications(b.pod.Spec.Containers) {
		ports = append(ports, c.Ports...)
		names = append(names, c.Name)
	}
	return ports, names
}

// Names that controllers make of their own: a Deployment's ReplicaSet, a CronJob's Job.
var cronJobName = regexp.MustCompile(`^(.+)-\d{8,10}$`)

// workload is what the pod is one of, as Istio names it: not the ReplicaSet but its Deployment.
func (b *builder) workload() Workload {
	m := b.pod.Metadata
	w := b.env.Workload
	if w == (Workload{}) {
		w = Workload{APIVersion: "v1", Kind: "Pod", Name: m.Name}
		for _, owner := range m.OwnerReferences {
			if owner.Controller {
				w = controllerOf(owner, m.Labels["pod-template-hash"])
			}
		}
		w.Name = cmp.Or(w.Name, strings.TrimSuffix(m.GenerateName, "-"))
	}
	w.namespace = cmp.Or(b.env.Namespace.Name, m.Namespace, "default")
	return w
}

func controllerOf(owner ownerReference, templateHash string) Workload {
	w := Workload{APIVersion: owner.APIVersion, Kind: owner.Kind, Name: owner.Name}
	switch owner.Kind {
	case "ReplicaSet":
		if name, ok := strings.CutSuffix(owner.Name, "-"+templateHash); ok && templateHash != "" {
			w.Kind, w.Name = "Deployment", name
		}
	case "Job":
		if match := cronJobName.FindStringSubmatch(owner.Name); match != nil {
			w.Kind, w.Name = "CronJob", match[1]
		}
	}
	return w
}

// asJSON writes what has nothing in it that JSON could not have.
func asJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
