package main

import (
	_ "embed"
	"fmt"
	"strings"
	"time"

	"understudy.mesh/demo/story"
	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// The story's manifests, as a user would apply them.
var (
	//go:embed manifests/mesh.yaml
	meshManifest string
	//go:embed manifests/sleep.yaml
	sleepManifest string
	//go:embed manifests/shop.yaml
	shopManifest string
)

const (
	// startLimit is how long a pod, or a slot, may take to be ready. On a free machine it is a few seconds.
	startLimit = 2 * time.Minute
	// plainLoad is how many requests each flow makes before and after the upgrade.
	plainLoad = 300
	// rate is the requests a second of each flow.
	rate = 100

	client, server = "sleep", "shop"
	oldSlot        = "istio-proxy-1"
	newSlot        = "istio-proxy-2"
)

// mesh is the story.
type mesh struct{ *story.Story }

func (m *mesh) theMesh() {
	m.Title("1. A mesh")
	m.Say("A real Kubernetes and a real istiod run on this machine, in namespaces of their own. This mesh wants mutual TLS and",
		"nothing else, and knows a host of the world outside that has no address.")
	m.Apply("demo/istiod/manifests/mesh.yaml", meshManifest)
}

func (m *mesh) thePods() {
	m.Title("2. Two pods in it, and one outside")
	m.Say("Their proxies are the agent with its Envoy, as uid 1337 and without a capability, in a manifest as Istio's injector makes it:",
		"a token for istiod, its root certificate, and no certificate of their own. The one of shop has a second slot, which is empty.")
	m.Apply("demo/istiod/manifests/shop.yaml", shopManifest)
	m.Apply("demo/istiod/manifests/sleep.yaml", sleepManifest)
	m.Namespace.Wait(m.T, startLimit, "condition=Ready", "pod/"+server, "pod/"+client, "pod/outsider")
	m.Kubectl("get", "pods")
	m.Check(true, "every pod is ready: istiod has told its Envoy what to do, and its authority has signed a certificate")
}

func (m *mesh) theCertificate() {
	m.Title("3. The certificate")
	out := m.Quiet("exec", server, "-c", oldSlot, "--", "pilot-agent", "request", "GET", "certs")
	identity := "spiffe://cluster.local/ns/" + m.Namespace.Name + "/sa/" + server
	m.Print(story.Containing(out, "spiffe://", "days_until_expiration", "valid_from"))
	m.Check(strings.Contains(out, identity), "Envoy has a certificate of "+identity)
}

func (m *mesh) theConnection() {
	m.Title("4. Mutual TLS")
	out, err := m.Try("exec", client, "-c", client, "--", "curl", "-sS", "http://"+server+"/")
	m.Check(err == nil && out == "server=shop\n", "who is in the mesh gets an answer, and its application knows nothing of TLS")
	out, err = m.Try("exec", client, "-c", client, "--", "curl", "-sS", "http://"+server+load.PeerPath)
	m.Check(err == nil && strings.Contains(out, "URI=spiffe://cluster.local/ns/"+m.Namespace.Name+"/sa/"+client), "who answers knows who asks")
	out, err = m.Try("exec", "outsider", "--", "curl", "-sS", "--max-time", "10", "http://"+server+"/")
	m.Check(err != nil && out == "", "who is not, is refused")
}

func (m *mesh) theName() {
	m.Title("5. A host without an address")
	out, err := m.Try("exec", client, "-c", client, "--", "curl", "-sS", "-o", "/dev/null", "-w", `%{remote_ip} %{http_code}\n`, "https://aliyun.com/")
	m.Check(err == nil && strings.HasPrefix(out, "240.240.") && strings.HasSuffix(out, " 200\n"), "the application was connected to a VIP of istiod's, and aliyun.com answered")
}

func (m *mesh) theUpgrade() {
	m.Title("6. A hot upgrade")
	m.Say(fmt.Sprintf("From sleep to shop, over mutual TLS: %d requests/s on connections of their own, %d on kept ones.", rate, rate),
		"Meanwhile the proxy of shop is replaced, by one with another Envoy, in the pod that serves: what OpenKruise does, by hand.")
	target := "http://" + server + "/"
	l := m.Namespace.Load(m.T, cluster.FromPod(client, client),
		load.Flow{Name: "new connections", Kind: load.HTTP1New, Target: target, Want: "server=shop", Rate: rate},
		load.Flow{Name: "kept connections", Kind: load.HTTP1Keep, Target: target, Want: "server=shop", Rate: rate})
	l.Await(m.T, startLimit, plainLoad)
	before := m.Namespace.Pod(m.T, server)
	m.patch(newSlot, cluster.ProxyV2, "2", "1")
	m.await(newSlot, cluster.ProxyV2)
	m.Kubectl("exec", server, "-c", newSlot, "--", "pilot-agent", "upgrade-status")
	m.patch(oldSlot, cluster.Empty, "0", "2")
	m.await(oldSlot, cluster.Empty)
	l.Await(m.T, startLimit, plainLoad)
	report := l.Stop(m.T)
	m.Print(report.String())
	m.Check(report.Failures() == 0 && report.Total().OK > 0, fmt.Sprintf("of %d requests %d failed", report.Total().OK+report.Failures(), report.Failures()))
	after := m.Namespace.Pod(m.T, server)
	m.Check(after.Containers[server].ID == before.Containers[server].ID && after.IP == before.IP, "the application was not started again, and the pod has its address")
	out := m.Quiet("exec", server, "-c", newSlot, "--", "pilot-agent", "upgrade-status")
	m.Check(strings.Contains(out, "serving"), "the new proxy serves")
}

// patch gives a slot an image, with the number of its version and the other slot's.
func (m *mesh) patch(slot, image, version, other string) {
	m.Kubectl("patch", "pod", server, "--patch", fmt.Sprintf(
		`{"metadata":{"annotations":{"version.sidecarset.kruise.io/%[1]s":%[3]q,"versionalt.sidecarset.kruise.io/%[1]s":%[4]q}},"spec":{"containers":[{"name":%[1]q,"image":%[2]q}]}}`,
		slot, image, version, other))
}

// await waits until a slot runs an image and its hook is done.
func (m *mesh) await(slot, image string) {
	lab.Eventually(m.T, startLimit, slot+" runs "+image, func() error {
		if c := m.Namespace.Pod(m.T, server).Containers[slot]; !c.Ready || !strings.HasSuffix(c.Image, image) {
			return fmt.Errorf("its state is %v, image %s, ready %v", c.State, c.Image, c.Ready)
		}
		return nil
	})
}
