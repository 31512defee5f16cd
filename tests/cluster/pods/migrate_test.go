package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// migratePaper has the commands of this test.
const migratePaper = "docs/migrate.md"

// movedWorkload is what the paper asks of a workload, in a namespace that takes nothing but mutual TLS. stayingWorkload is in another
// one, whose pods have Istio's own agent all the time.
const (
	movedWorkload = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 9000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxUnavailable: 0}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: server
        image: curlimages/curl
        imagePullPolicy: IfNotPresent
        command: [understudy-load, serve, -name, app, -http, ":8080", -echo, ":9000"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        lifecycle: {preStop: {sleep: {seconds: 10}}}
`
	// server is its container.
	server = "server"
)

// Who injects, by the annotation istio.io/rev of the pod.
const (
	byIstio = "default"
	byUs    = "understudy"
)

// TestMigrate is docs/migrate.md to the letter, there and back, under load between the pods that move and others with Istio's own
// agent: no request fails. Then its commands with which one looks ahead.
func TestMigrate(t *testing.T) {
	m := newMigration(t)
	stage0 := m.blocks(t, "Stage 0: the image alone", 2)
	stage1 := m.blocks(t, "Stage 1: a namespace", 3)
	ahead := m.blocks(t, "Before the first pod", 3)
	m.start(t)
	m.run(t, ahead[0])
	m.preflight(t, ahead[1])
	if out := m.run(t, ahead[2]); !strings.Contains(out, "Deployment "+m.ns.Name+"/web is injected") {
		t.Errorf("explain says\n%s", out)
	}
	m.move(t, "to stage 0", stage0[0], cluster.ProxyDev, byIstio)
	m.move(t, "back from stage 0", stage0[1], cluster.IstioProxy, byIstio)
	m.install(t, stage1[0])
	m.move(t, "to stage 1", stage1[1], cluster.ProxyDev, byUs)
	m.move(t, "back from stage 1", stage1[2], cluster.IstioProxy, byIstio)
	m.finish(t)
}

// TestMigrateNamespace is the shorter way: a namespace moves, by the same commands.
func TestMigrateNamespace(t *testing.T) {
	m := newMigration(t)
	stage1 := m.blocks(t, "Stage 1: a namespace", 3)
	m.start(t)
	ahead := m.blocks(t, "Before the first pod", 3)
	m.run(t, ahead[0])
	m.preflight(t, ahead[1])
	m.install(t, stage1[0])
	m.move(t, "to stage 1", stage1[1], cluster.ProxyDev, byUs)
	m.finish(t)
}

// migration is a namespace that moves and one that stays.
type migration struct {
	dir      string // in which the commands are run
	ns, stay *cluster.Namespace
	from     string        // the pod of the one that stays
	load     *cluster.Load // from that to the one that moves
}

// newMigration makes a cluster that Istio's own injector injects, and the directory of the one who moves a namespace of it.
func newMigration(t *testing.T) *migration {
	t.Helper()
	root := lab.RepoRoot(t)
	m := &migration{dir: t.TempDir()}
	linkInjector(t, m.dir)
	if err := os.Symlink(filepath.Join(root, "deploy"), filepath.Join(m.dir, "deploy")); err != nil {
		t.Fatal(err)
	}
	shared.StartIstioInjector(t, root)
	m.ns, m.stay = shared.Namespace(t, "shop"), shared.Namespace(t, "bank")
	for _, ns := range []*cluster.Namespace{m.ns, m.stay} {
		ns.Kubectl(t, "label", "namespace", ns.Name, "istio-injection=enabled")
	}
	lab.Eventually(t, podLimit, "the API server reaches Istio's injector", func() error { // kube-proxy follows the endpoints a little later
		out, err := m.ns.Try("run", "early", "--image=curlimages/curl", "--dry-run=server", "--output=jsonpath={.metadata.annotations}")
		if err == nil && !strings.Contains(out, "sidecar.istio.io/status") {
			err = fmt.Errorf("a pod is not injected: %s", out)
		}
		return err
	})
	return m
}

// blocks are the commands of a section of the paper.
func (m *migration) blocks(t *testing.T, section string, n int) []string {
	t.Helper()
	found := blocksOf(t, migratePaper, section, "sh")
	if len(found) != n {
		t.Fatalf("%s: section %q has %d blocks of commands, want %d", migratePaper, section, len(found), n)
	}
	return found
}

// run runs commands of the paper, in whose place of the namespace shop the test has its own, and returns what they print.
func (m *migration) run(t *testing.T, commands string) string {
	t.Helper()
	out, err := shell(m.dir, strings.NewReplacer("-n shop ", "-n "+m.ns.Name+" ", "-n shop\n", "-n "+m.ns.Name+"\n", "namespace shop ", "namespace "+m.ns.Name+" ").Replace(commands))
	if err != nil {
		t.Fatalf("%s: %v", migratePaper, err)
	}
	return out
}

// start starts the workloads, and the load from the pod that stays.
func (m *migration) start(t *testing.T) {
	t.Helper()
	m.ns.Apply(t, movedWorkload)
	m.stay.Apply(t, strings.Replace(movedWorkload, "replicas: 2", "replicas: 1", 1))
	for _, ns := range []*cluster.Namespace{m.ns, m.stay} {
		ns.Wait(t, podLimit, "condition=Available", "deployment/web")
	}
	m.mustRun(t, m.stay, cluster.IstioProxy, byIstio)
	m.mustRun(t, m.ns, cluster.IstioProxy, byIstio)
	m.from = m.stay.Pods(t, webLabel)[0].Name
	m.awaitPeer(t, m.stay, m.from, m.ns)
	m.load = m.stay.Load(t, cluster.FromPod(m.from, server), flowsTo(m.ns)...)
	awaitRequests(t, m.load, enough)
}

// flowsTo is what is asked of a namespace's workload, each on connections of its own, and for no longer than a drain.
func flowsTo(ns *cluster.Namespace) []load.Flow {
	host := "web." + ns.Name + ".svc.cluster.local"
	return []load.Flow{
		{Name: "new", Kind: load.HTTP1New, Target: "http://" + host + "/", Want: "server=app", Rate: 30},
		{Name: "kept", Kind: load.HTTP1Keep, Target: "http://" + host + "/", Want: "server=app", Rate: 20},
		{Name: "tcp", Kind: load.TCPStream, Target: host + ":9000", Rate: 20, Life: load.Duration(1e9)},
	}
}

// awaitPeer waits until the workload of one namespace sees who asks from the other one, which it does of a certificate alone.
func (m *migration) awaitPeer(t *testing.T, from *cluster.Namespace, pod string, to *cluster.Namespace) {
	t.Helper()
	lab.Eventually(t, podLimit, "who is called sees who calls", func() error {
		got, err := from.TryExec(pod, server, "curl", "-sS", "http://web."+to.Name+".svc.cluster.local"+load.PeerPath)
		want := "URI=spiffe://cluster.local/ns/" + from.Name + "/sa/default"
		if err == nil && !strings.Contains(got, want) {
			err = fmt.Errorf("the header is %q, want %s in it", got, want)
		}
		return err
	})
}

// preflight wants the look ahead to find nothing that would be otherwise.
func (m *migration) preflight(t *testing.T, command string) {
	t.Helper()
	out := m.run(t, command)
	for _, ns := range []*cluster.Namespace{m.ns, m.stay} {
		if !strings.Contains(out, "Deployment "+ns.Name+"/web: as it is\n") {
			t.Errorf("preflight says\n%s", out)
		}
	}
}

// install runs the commands that install the injector, and removes it in the end.
func (m *migration) install(t *testing.T, commands string) {
	t.Helper()
	removeInjector(t)
	m.run(t, commands)
}

// move runs commands that replace the workload's pods, and demands that the new ones are as they should be: who injected them, which
// image their proxy has, that pods of the other namespace see them, and are seen by them.
func (m *migration) move(t *testing.T, what, commands, image, revision string) {
	t.Helper()
	m.run(t, commands)
	lab.Eventually(t, podLimit, what+": the old pods are gone", func() error {
		var still []string
		for _, pod := range m.ns.Pods(t, webLabel) {
			if pod.Deleting {
				still = append(still, pod.Name)
			}
		}
		if len(still) > 0 {
			return fmt.Errorf("there are %q", still)
		}
		return nil
	})
	m.mustRun(t, m.ns, image, revision)
	awaitRequests(t, m.load, enough)
	pods := m.ns.Pods(t, webLabel)
	moved := pods[0].Name
	m.awaitPeer(t, m.ns, moved, m.stay)
	back := m.ns.Load(t, cluster.FromPod(moved, server), flowsTo(m.stay)...)
	awaitRequests(t, back, enough)
	mustServe(t, what+", to the pod that stays", back)
	// By a pod's address nobody's Envoy knows that it takes mutual TLS.
	if got, err := m.stay.TryExec(m.from, server, "curl", "-sS", "--fail", "--max-time", "10", "http://"+pods[0].IP+":8080/"); err == nil {
		t.Errorf("%s: plain text gets %q, want a connection that is refused", what, got)
	}
	if failed := m.load.Report().Failures(); failed > 0 {
		t.Errorf("%s: %d requests have failed:\n%v", what, failed, m.load.Report())
	}
}

// mustRun demands of every pod of the workload an image in its proxy, and a revision that has injected it.
func (m *migration) mustRun(t *testing.T, ns *cluster.Namespace, image, revision string) {
	t.Helper()
	for _, pod := range ns.Pods(t, webLabel) {
		got, by := pod.Containers[proxy].Image, pod.Annotations["istio.io/rev"]
		if !strings.HasSuffix(got, image) || by != revision || !pod.Ready {
			t.Errorf("pod %s: image %q, injected by %q, ready %v; want %s, %s", pod.Name, got, by, pod.Ready, image, revision)
		}
	}
}

// finish ends the load.
func (m *migration) finish(t *testing.T) {
	t.Helper()
	mustServe(t, "from the pod that stays", m.load)
}
