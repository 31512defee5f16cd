package pods

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

// fleetProfile gives pods two slots, of which the idle one has small requests.
const fleetProfile = injectorProfile + `  hotUpgrade: {emptyImage: ` + cluster.Empty + `, upgradeDrainDuration: 5s}
`

// perPod is how much longer each pod may take that starts together with others.
const perPod = 20 * time.Second

// fleet is a Deployment whose pods have two slots, with load on it, and the command that upgrades them.
type fleet struct {
	*testing.T
	ns    *cluster.Namespace
	dir   string
	watch *cluster.Watch
	load  *cluster.Load
}

// classicProfile is fleetProfile with slots that are no native sidecars.
var classicProfile = strings.Replace(fleetProfile, "proxy: {", "proxy: {native: Never, ", 1)

// newFleet makes one of some pods, as sidecar-injector inject makes them, and one pod besides for each of other profiles, and waits until they are
// ready.
func newFleet(t *testing.T, name, profile string, replicas int, others ...string) *fleet {
	t.Helper()
	ns := shared.Namespace(t, name)
	applyFleetKind(t)
	mesh, _, _ := strings.Cut(readmeBlocks(t, "A first pod", "yaml")[0], "\n---\n")
	ns.Apply(t, mesh)
	f := &fleet{T: t, ns: ns, dir: t.TempDir()}
	application := strings.Replace(servingApplication, "replicas: 1", fmt.Sprintf("replicas: %d", replicas), 1)
	application = strings.NewReplacer("  - port: 80\n", "  - port: 80\n    targetPort: 8080\n", "periodSeconds: 1}", "periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 3}").Replace(application)
	ns.Apply(t, f.inject(profile, application))
	deployments := []string{"deployment/sleep"}
	for i, other := range others {
		_, deployment, _ := strings.Cut(application, "---\n")
		another := fmt.Sprintf("sleep-%d", i+1)
		deployment = strings.NewReplacer("\n  name: sleep\n", "\n  name: "+another+"\n", fmt.Sprintf("replicas: %d", replicas), "replicas: 1").Replace(deployment)
		ns.Apply(t, f.inject(other, deployment))
		deployments = append(deployments, "deployment/"+another)
	}
	// Pods that start together share the machine.
	ns.Wait(t, podLimit+time.Duration(replicas)*perPod, "condition=Available", deployments...)
	f.watch = ns.Watch(t)
	f.startLoad()
	return f
}

// startLoad is of new and kept connections to the Service, from when on it leads to the pods.
func (f *fleet) startLoad() {
	f.Helper()
	var service struct{ Spec struct{ ClusterIP string } }
	f.ns.Get(f.T, &service, "service", "sleep")
	target := "http://" + service.Spec.ClusterIP + "/"
	flows := []load.Flow{
		{Name: "new", Kind: load.HTTP1New, Target: target, Rate: 25, Want: "server=app"},
		{Name: "kept", Kind: load.HTTP1Keep, Target: target, Rate: 25, Want: "server=app"},
	}
	lab.Eventually(f.T, podLimit, "the Service leads to the pods", func() error {
		try := f.ns.Load(f.T, cluster.FromNode(), flows...)
		try.Await(f.T, podLimit, 10)
		for _, flow := range try.Stop(f.T).Flows {
			if n := flow.Total.Failures(); n > 0 {
				return fmt.Errorf("%d requests failed: %v", n, flow.Failures)
			}
		}
		return nil
	})
	f.load = f.ns.Load(f.T, cluster.FromNode(), flows...)
}

// applyFleetKind makes the kind SidecarUpgrade known.
func applyFleetKind(t *testing.T) {
	t.Helper()
	for _, kind := range []string{"sidecarprofiles", "sidecarupgrades"} {
		if _, err := shared.Kubectl(t.Context(), nil, "apply", "-f", filepath.Join(lab.RepoRoot(t), "deploy/chart/crds", kind+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	lab.Eventually(t, podLimit, "the API server serves the kinds", func() error { // kubectl wait fails where a kind has no conditions yet
		_, err := shared.Kubectl(t.Context(), nil, "get", "sidecarupgrades,sidecarprofiles", "-A")
		return err
	})
}

// inject is what the injector makes of an application by a profile, whatever it warns of.
func (f *fleet) inject(profile, application string) string {
	f.Helper()
	writeFile(f.T, filepath.Join(f.dir, "profile.yaml"), profile)
	cmd := f.command("inject", "--offline", "--kubelet-version", "v1.37.0", "--settings", filepath.Join(f.dir, "profile.yaml"), "-f", "-")
	cmd.Stdin = strings.NewReader(application)
	out, err := cmd.Output()
	if err != nil {
		f.Fatalf("%v", err)
	}
	return string(out)
}

// command is sidecar-injector in the namespace.
func (f *fleet) command(arguments ...string) *exec.Cmd {
	return exec.CommandContext(f.Context(), f.program(), append(arguments, "-n", f.ns.Name)...)
}

func (f *fleet) program() string {
	f.Helper()
	program := filepath.Join(lab.RepoRoot(f.T), "bin", "sidecar-injector")
	if _, err := os.Stat(program); err != nil {
		f.Fatalf("%v (make build)", err)
	}
	return program
}

// upgrade runs the command in the node's network, and returns its exit status and what it said.
func (f *fleet) upgrade(arguments ...string) (status int, said string) {
	f.Helper()
	began := time.Now()
	cmd := f.upgradeCommand(f.Context(), arguments...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	f.Logf("sidecar-injector upgrade %s: %v after %s\n%s", strings.Join(arguments, " "), err, time.Since(began).Round(time.Second), &out)
	return cluster.ExitStatus(err), out.String()
}

func (f *fleet) upgradeCommand(ctx context.Context, arguments ...string) *exec.Cmd {
	f.Helper()
	cmd, err := shared.Administer(ctx, append([]string{f.program(), "upgrade", "-n", f.ns.Name}, arguments...)...)
	if err != nil {
		f.Fatalf("%v", err)
	}
	return cmd
}

// must demands an exit status, and a text of what was said.
func (f *fleet) must(want int, text string, arguments ...string) string {
	f.Helper()
	status, said := f.upgrade(arguments...)
	if status != want || !strings.Contains(said, text) {
		f.Errorf("exit status %d, want %d and %q", status, want, text)
	}
	return said
}

// quick are flags with which a few pods do not take an hour.
var quick = []string{"--bake=0s", "--soak=0s", "--observe=2s", "--max-unavailable=34%"}

// mustRun demands images of the two slots of every pod that is not about to go, and that one generation is left.
func (f *fleet) mustRun(image string) {
	f.Helper()
	for _, p := range f.ns.Pods(f.T, "app=sleep") {
		if p.Deleting {
			continue
		}
		var object struct {
			Spec struct {
				InitContainers, Containers []struct{ Name, Image string }
			}
			Metadata struct{ Annotations map[string]string }
		}
		f.ns.Get(f.T, &object, "pod", p.Name)
		images := map[string]string{}
		for _, c := range append(object.Spec.InitContainers, object.Spec.Containers...) {
			images[c.Image] = c.Name
		}
		working, idle := images[image], images[cluster.Empty]
		version, alt := object.Metadata.Annotations["version.understudy.mesh/"+working], object.Metadata.Annotations["versionalt.understudy.mesh/"+working]
		if working == "" || idle == "" || version == "0" || alt != "0" || object.Metadata.Annotations["version.understudy.mesh/"+idle] != "0" {
			f.Errorf("pod %s: %v, %v; want %s and %s", p.Name, images, object.Metadata.Annotations, image, cluster.Empty)
		}
	}
}

// mustNotFail demands that no request failed and no pod was ever unready.
func (f *fleet) mustNotFail() {
	f.Helper()
	f.mustAnswer()
	f.mustStayReady()
}

// mustAnswer demands that no request failed.
func (f *fleet) mustAnswer() {
	f.Helper()
	report := f.load.Stop(f.T)
	for _, flow := range report.Flows {
		f.Logf("%s: %d answers, %d failed", flow.Name, flow.Total.OK, flow.Total.Failures())
		if flow.Total.Failures() > 0 {
			f.Errorf("%s: requests failed: %v", flow.Name, flow.Failures)
		}
	}
}

func (f *fleet) mustStayReady() {
	f.Helper()
	for _, p := range f.ns.Pods(f.T, "app=sleep") {
		for _, span := range f.watch.Unready(p.Name) {
			f.Errorf("pod %s was not ready from %s to %s", p.Name, span[0].Format(clock), span[1].Format(clock))
			for _, at := range f.watch.Pod(p.Name) {
				a, b := at.Containers["istio-proxy"], at.Containers["istio-proxy-2"]
				f.Logf("%s ready %v; %v, %d restarts, ready %v, %s; %v, %d restarts, ready %v, %s", at.At.Format(clock), at.Ready, a.State, a.Restarts, a.Ready, a.Image, b.State, b.Restarts, b.Ready, b.Image)
			}
		}
	}
}

// object is the SidecarUpgrade as it is.
func (f *fleet) object() (u struct {
	Status struct {
		Phase  string
		Pods   struct{ Total, Done, InFlight, Draining, Failed, Held int }
		Failed []struct{ Pod, Reason string }
	}
}) {
	f.Helper()
	text := f.ns.Kubectl(f.T, "get", "sidecarupgrade", "default", "-o", "json")
	if err := json.Unmarshal([]byte(text), &u); err != nil {
		f.Fatal(err)
	}
	return u
}

// events are those of a kind in the namespace.
func (f *fleet) events(reason string) string {
	f.Helper()
	return f.ns.Kubectl(f.T, "get", "events", "--field-selector", "reason="+reason, "--no-headers")
}

// TestUpgradeCommand upgrades three pods in place by the command, two with native sidecars whose idle slot has small requests and one with containers
// of the classic kind, and goes back.
func TestUpgradeCommand(t *testing.T) {
	f := newFleet(t, "fleet", fleetProfile, 2, classicProfile)
	f.must(0, "3 pods would get "+cluster.ProxyV2, "--image", cluster.ProxyV2, "--dry-run")
	f.must(0, "3 of 3 pods run "+cluster.ProxyV2, append([]string{"--image", cluster.ProxyV2}, quick...)...)
	f.mustRun(cluster.ProxyV2)
	f.must(0, "3 of 3 pods run "+cluster.ProxyDev, "--undo")
	f.mustRun(cluster.ProxyDev)
	f.mustNotFail()
	for _, reason := range []string{"Started", "Undo", "Done"} {
		if f.events(reason) == "" {
			t.Errorf("there is no event %s", reason)
		}
	}
}

// TestLongUpgradeFaults: an image that is bad stops at one pod; two engines work as one; one that is killed again and again loses nothing,
// and pods are never unready for it.
func TestLongUpgradeFaults(t *testing.T) {
	if !*long {
		t.Skip("it takes minutes: -long")
	}
	f := newFleet(t, "faults", fleetProfile, 4)
	dies := withEnvoy(t, "fleet-dies", "#!/bin/sh\n[ \"$1\" = --hot-restart-version ] && exec "+cluster.OlderEnvoy+" \"$@\"\nexit 3\n")
	said := f.must(1, "Envoy ended 5 times before it ever served", append([]string{"--image", dies}, quick...)...)
	if !strings.Contains(said, "Stopped: 0 of 4 pods run") || strings.Count(said, "failed: pod") != 1 {
		t.Errorf("it did not stop at one pod")
	}
	f.mustRun(cluster.ProxyDev)
	unready := 0
	for _, p := range f.ns.Pods(t, "app=sleep") {
		for _, span := range f.watch.Unready(p.Name) { // the kubelet says so as it says that the hook has failed
			t.Logf("pod %s was not ready for %s", p.Name, span[1].Sub(span[0]))
			unready++
		}
	}
	if unready > 1 {
		t.Errorf("more than one pod was unready for the bad image")
	}
	f.watch = f.ns.Watch(t)
	if f.events("UpgradeFailed") == "" || f.events("Stopped") == "" {
		t.Errorf("no event says that it failed")
	}
	// Two engines, each of which is killed at other moments than the other.
	f.must(0, "Done: 4 of 4 pods run "+cluster.ProxyDev, "--undo")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	kills := 0
	for ; ctx.Err() == nil; kills++ {
		one, other := f.upgradeCommand(ctx, append([]string{"--image", cluster.ProxyV2}, quick...)...), f.upgradeCommand(ctx, append([]string{"--image", cluster.ProxyV2}, quick...)...)
		if kills > 0 {
			one, other = f.upgradeCommand(ctx, "--resume"), f.upgradeCommand(ctx, "--resume")
		}
		for _, c := range []*exec.Cmd{one, other} {
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
		}
		timer := time.AfterFunc(time.Duration(17+5*kills)*time.Second, func() { _, _ = one.Process.Kill(), other.Process.Kill() })
		errs := []error{one.Wait(), other.Wait()}
		timer.Stop()
		if errs[0] == nil || errs[1] == nil {
			break
		}
	}
	t.Logf("killed %d times", kills)
	f.mustRun(cluster.ProxyV2)
	f.mustNotFail()
}

// TestLongUpgrader: the Deployment of deploy/ does what the command asks for, with the rights of its account and no more, in namespaces with
// its label, and by digest unless tags are allowed; the command only follows, and may be ended.
func TestLongUpgrader(t *testing.T) {
	if !*long {
		t.Skip("it takes minutes: -long")
	}
	f := newFleet(t, "upgrader", fleetProfile, 3)
	const own = "understudy-system"
	manifest := filepath.Join(lab.RepoRoot(t), "deploy/sidecar-upgrader.yaml")
	ctx := context.Background() // t's has ended when this is removed
	t.Cleanup(func() {
		if _, err := shared.Kubectl(ctx, nil, "delete", "--ignore-not-found", "-f", manifest); err != nil {
			t.Errorf("the upgrader is left behind: %v", err)
		}
		if _, err := shared.Kubectl(ctx, nil, "delete", "namespace", own); err != nil {
			t.Errorf("its namespace is left behind: %v", err)
		}
	})
	for _, arguments := range [][]string{
		{"create", "namespace", own}, {"apply", "-f", manifest}, {"rollout", "status", "-n", own, "deployment/sidecar-upgrader"},
		{"label", "namespace", f.ns.Name, "understudy.mesh/upgrader=enabled"},
	} {
		if _, err := shared.Kubectl(ctx, nil, arguments...); err != nil {
			t.Fatal(err)
		}
	}
	lab.Eventually(t, podLimit, "the upgrader works", func() error {
		out, err := shared.Kubectl(ctx, nil, "get", "lease", "-n", own, "sidecar-upgrader", "-o", "jsonpath={.spec.holderIdentity}")
		if err == nil && out == "" {
			err = fmt.Errorf("nobody holds its Lease")
		}
		return err
	})
	f.must(1, "sets images by digest alone", "--image", cluster.ProxyV2)
	arguments := append([]string{"--image", cluster.ProxyV2, "--allow-tags"}, quick...)
	command := f.upgradeCommand(t.Context(), arguments...)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, podLimit, "it has begun", func() error {
		if f.ns.Kubectl(t, "get", "sidecarupgrade", "-o", "jsonpath={.items[*].status.pods.inFlight}") == "" {
			return fmt.Errorf("nothing is in flight")
		}
		return nil
	})
	_ = command.Process.Kill()
	_ = command.Wait()
	lab.Eventually(t, 2*podLimit, "the upgrader has finished without the command", func() error {
		if u := f.object(); u.Status.Phase != "Done" || u.Status.Pods.Done != 3 {
			return fmt.Errorf("%+v", u.Status)
		}
		return nil
	})
	f.mustRun(cluster.ProxyV2)
	if holder := f.ns.Kubectl(t, "get", "sidecarupgrade", "default", "-o", "jsonpath={.status.engine}"); !strings.HasPrefix(holder, "sidecar-upgrader-") {
		t.Errorf("%q has done it", holder)
	}
	f.must(0, "3 of 3 pods run "+cluster.ProxyDev, "--undo")
	f.mustRun(cluster.ProxyDev)
	f.mustNotFail()
	log, _ := shared.Kubectl(ctx, nil, "logs", "-n", own, "-l", "app.kubernetes.io/name=sidecar-upgrader", "--tail=200")
	t.Logf("%s", log)
	if strings.Contains(log, "forbidden") || strings.Contains(log, "denied") {
		t.Errorf("its account lacks a right")
	}
}
