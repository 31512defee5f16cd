package istiod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"understudy.mesh/tests/lab"
)

// Pod is a lab whose pod is one of istiod's mesh: its agent is ours or Istio's.
type Pod struct {
	*lab.Lab
	Istiod *Istiod
	Slots  *lab.Slots
	// Ours and Istios are the images that may run in a slot.
	Ours, Istios lab.Image
}

// NewPod makes a pod of so many slots; nothing runs yet.
func NewPod(t lab.T, p Programs, slots int, env ...string) *Pod {
	t.Helper()
	l := lab.New(t)
	l.StartDNS(t, nil)
	i := New(t, l, p.Istiod)
	files := map[string]string{"/var/run/secrets/tokens": i.dirOf("tokens"), "/var/run/secrets/istio": i.dirOf("root")}
	i.must(os.WriteFile(filepath.Join(i.dirOf("tokens"), "istio-token"), []byte("e30.e30.e30"), 0o644)) // the API server takes any
	// As Istio's injector has it: its agent's socket for certificates is there.
	volumes := append(lab.Volumes(), lab.Volume{Name: "workload-socket", Mount: "/var/run/secrets/workload-spiffe-uds"})
	s := l.NewSlots(t, lab.SlotsOptions{Slots: slots, Volumes: volumes, Command: []string{"proxy", "sidecar", "--domain", "default.svc.cluster.local"}, Env: append([]string{
		// Envoy's default is not to keep what says whether it has its stream.
		fmt.Sprintf("PROXY_CONFIG={discoveryAddress: '%s', concurrency: 2, terminationDrainDuration: %s, proxyStatsMatcher: {inclusionPrefixes: [control_plane]}}", Address, lab.TerminationDrain),
		"ISTIOD_SAN=" + Host, "ISTIO_META_CLUSTER_ID=Kubernetes", "CLOUD_PLATFORM=none", "ISTIO_BOOTSTRAP=" + lab.ConfigMount + "/bootstrap.json",
	}, env...)})
	template, err := os.ReadFile(p.template)
	i.must(err)
	i.must(os.WriteFile(filepath.Join(s.HostConfig, "bootstrap.json"), template, 0o644))
	envoy := lab.EnvoyBinary(t)
	return &Pod{
		Lab: l, Istiod: i, Slots: s,
		Ours:   lab.Image{Name: "understudy", Agent: lab.AgentBinary(t), Envoy: envoy, Files: files},
		Istios: lab.Image{Name: "istio", Agent: p.Agent, Envoy: envoy, Files: files},
	}
}

// StartIstiod starts istiod, and gives the pod the root of its authority, which it keeps.
func (p *Pod) StartIstiod() {
	p.Istiod.Start()
	p.Istiod.must(os.WriteFile(filepath.Join(p.Istiod.dirOf("root"), "root-cert.pem"), p.Istiod.Root(), 0o644))
}

// dirOf is a directory of the pod's files.
func (i *Istiod) dirOf(name string) string {
	dir := filepath.Join(i.dir, name)
	i.must(os.MkdirAll(dir, 0o755))
	return dir
}

// Hosts are ServiceEntries of so many hosts, host-0.mesh.test and so on, with two endpoints each: every fourth is of TCP, and has a
// listener of its own, the others are of HTTP and are in the routes of one port.
func Hosts(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(Entry(fmt.Sprintf("host-%d.mesh.test", i), map[bool]string{true: "TCP", false: "HTTP"}[i%4 == 0], "198.51.100.80", "198.51.100.81"))
	}
	return b.String()
}

// Entry is a ServiceEntry of one host with endpoints.
func Entry(host, protocol string, endpoints ...string) string {
	return fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s, namespace: default}
spec:
  hosts: [%s]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: port, protocol: %s}]
  endpoints: [{address: %s}]
`, strings.ReplaceAll(host, ".", "-"), host, protocol, strings.Join(endpoints, "}, {address: "))
}
