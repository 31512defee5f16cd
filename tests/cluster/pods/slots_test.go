package pods

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"understudy.mesh/build/oci"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

const (
	// stepLimit is how long one step of an upgrade may take. On a free machine it is a few seconds.
	stepLimit = 2 * time.Minute
	// application is the container that is not a slot.
	application = "nginx"
)

// The slots, and where each finds its number; the SidecarSet controller writes them.
var slots = [2]string{"istio-proxy-1", "istio-proxy-2"}

func versionKey(slot int) string    { return "version.sidecarset.kruise.io/" + slots[slot] }
func versionAltKey(slot int) string { return "versionalt.sidecarset.kruise.io/" + slots[slot] }

// twoSlots is the pod that OpenKruise makes of manifests/, and what its SidecarSet controller does to it.
type twoSlots struct {
	ns       *cluster.Namespace
	name     string
	watch    *cluster.Watch
	serving  int // the slot that has been upgraded last
	revision int // of the SidecarSet
}

// podOptions are what differs from the manifests.
type podOptions struct {
	drain       time.Duration // --upgradeDrainDuration
	environment map[string]string
	istiod      bool // in the place of files
}

// manifest reads the objects of a file of manifests/, without their namespace.
func manifest(t *testing.T, name string) (objects []object) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "manifests", name))
	if err != nil {
		t.Fatal(err)
	}
	for _, document := range strings.Split(string(text), "\n---\n") {
		var o object
		if err := yaml.Unmarshal([]byte(document), &o); err != nil {
			t.Fatalf("manifests/%s: %v", name, err)
		}
		delete(o["metadata"].(object), "namespace")
		objects = append(objects, o)
	}
	return objects
}

// applyMesh applies what the pods read, with the hosts of the other tests' mesh besides; and a Service of each type
// for the application.
func applyMesh(t *testing.T, ns *cluster.Namespace) {
	t.Helper()
	var world object
	if err := yaml.Unmarshal([]byte(mesh), &world); err != nil {
		t.Fatal(err)
	}
	for _, m := range manifest(t, "configmap.yaml") {
		if m["metadata"].(object)["name"] == "mesh" {
			maps.Copy(m["data"].(object), world["data"].(object))
		}
		apply(t, ns, m)
	}
	service := manifest(t, "nginx.yaml")[1]
	apply(t, ns, service)
	service["metadata"].(object)["name"] = "nginx-node"
	service["spec"].(object)["type"] = "NodePort"
	apply(t, ns, service)
}

func apply(t *testing.T, ns *cluster.Namespace, o object) {
	t.Helper()
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	ns.Apply(t, string(text))
}

// newTwoSlots injects the slots into a pod of manifests/nginx.yaml, as OpenKruise's webhook does, and waits until it is ready.
func newTwoSlots(t *testing.T, ns *cluster.Namespace, name string, o podOptions) *twoSlots {
	t.Helper()
	set := manifest(t, "sidecarset.yaml")[0]["spec"].(object)
	template := manifest(t, "nginx.yaml")[0]["spec"].(object)["template"].(object)
	spec, metadata := template["spec"].(object), template["metadata"].(object)
	var containers []any
	annotations := object{}
	for slot := range slots {
		// Read anew, so that the two share nothing.
		c := manifest(t, "sidecarset.yaml")[0]["spec"].(object)["containers"].([]any)[0].(object)
		if slot == 1 {
			c["image"] = c["upgradeStrategy"].(object)["hotUpgradeEmptyImage"]
		}
		for _, kruises := range []string{"upgradeStrategy", "podInjectPolicy", "shareVolumePolicy"} {
			delete(c, kruises)
		}
		c["name"] = slots[slot]
		annotations[versionKey(slot)], annotations[versionAltKey(slot)] = strconv.Itoa(1-slot), strconv.Itoa(slot)
		c["env"] = append(c["env"].([]any), fromAnnotation(lab.VersionEnv, versionKey(slot)), fromAnnotation(lab.VersionAltEnv, versionAltKey(slot)))
		o.change(c)
		containers = append(containers, c)
	}
	spec["containers"] = append(containers, spec["containers"].([]any)...)
	spec["initContainers"], spec["volumes"] = set["initContainers"], set["volumes"]
	if o.istiod {
		spec["volumes"] = append(spec["volumes"].([]any), istiodVolumes(t)["volumes"].([]any)...)
	}
	metadata["name"], metadata["annotations"] = name, annotations
	apply(t, ns, object{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
	ns.Wait(t, podLimit, "condition=Ready", "pod/"+name)
	return &twoSlots{ns: ns, name: name, watch: ns.Watch(t), revision: firstRevision}
}

// firstRevision is the SidecarSet's: any number far above the 1 that the webhook writes.
const firstRevision = 1097936677

func fromAnnotation(variable, key string) object {
	return object{"name": variable, "valueFrom": object{"fieldRef": object{"fieldPath": "metadata.annotations['" + key + "']"}}}
}

func (o podOptions) change(c object) {
	if arguments := c["args"].([]any); o.drain > 0 {
		arguments[slices.Index(arguments, "--upgradeDrainDuration")+1] = o.drain.String()
	}
	for name, value := range o.environment {
		c["env"] = append(c["env"].([]any), object{"name": name, "value": value})
	}
	if o.istiod {
		followIstiod(c)
	}
}

// work is the slot that gets the next image: the one that does not serve.
func (p *twoSlots) work() int { return 1 - p.serving }

// now is the pod as the API server has last told.
func (p *twoSlots) now() (cluster.Pod, error) {
	seen := p.watch.Pod(p.name)
	if len(seen) == 0 || seen[len(seen)-1].Gone {
		return cluster.Pod{}, fmt.Errorf("there is no pod %s", p.name)
	}
	return seen[len(seen)-1].Pod, nil
}

// begin is the first step of an upgrade, one write: the slot that does not serve gets the image.
func (p *twoSlots) begin(t *testing.T, image string) {
	t.Helper()
	p.revision++
	pod := p.ns.Pod(t, p.name)
	work, revision := p.work(), strconv.Itoa(p.revision)
	p.patch(t, work, image, object{
		versionKey(work): revision, versionAltKey(work): pod.Annotations[versionKey(p.serving)], versionAltKey(p.serving): revision,
	})
}

// finish is the second one, once the first has led to a ready container, and returns when it is done.
func (p *twoSlots) finish(t *testing.T, image string) {
	t.Helper()
	p.await(t, p.work(), image)
	p.reset(t)
	p.await(t, p.work(), cluster.Empty)
}

// reset is the write of the second step: the slot that served gets the empty image.
func (p *twoSlots) reset(t *testing.T) {
	t.Helper()
	p.patch(t, p.serving, cluster.Empty, object{versionKey(p.serving): "0", versionAltKey(p.work()): "0"})
	p.serving = p.work()
}

// upgrade is a whole upgrade.
func (p *twoSlots) upgrade(t *testing.T, image string) {
	t.Helper()
	p.begin(t, image)
	p.finish(t, image)
}

func (p *twoSlots) patch(t *testing.T, slot int, image string, annotations object) {
	t.Helper()
	text, err := json.Marshal(object{
		"metadata": object{"annotations": annotations},
		"spec":     object{"containers": []object{{"name": slots[slot], "image": image}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s gets %s", time.Now().Format(clock), slots[slot], image)
	p.ns.Kubectl(t, "patch", "pod", p.name, "--patch", string(text))
}

// clock is how tests say when something was, as a load does.
const clock = "15:04:05.000"

// await waits until a slot runs an image and is ready.
func (p *twoSlots) await(t *testing.T, slot int, image string) {
	t.Helper()
	p.awaitSlot(t, slot, "runs "+image+" and is ready", func(c cluster.Container) bool {
		return c.Ready && strings.HasSuffix(c.Image, image)
	})
	t.Logf("%s %s runs %s", time.Now().Format(clock), slots[slot], image)
}

// awaitSlot waits for what the API server says of a slot.
func (p *twoSlots) awaitSlot(t *testing.T, slot int, what string, is func(cluster.Container) bool) {
	t.Helper()
	lab.Eventually(t, stepLimit, slots[slot]+" "+what, func() error {
		pod, err := p.now()
		if err != nil {
			return err
		}
		if c := pod.Containers[slots[slot]]; !is(c) {
			return fmt.Errorf("its state is %v, before it %v, image %s, ready %v", c.State, c.Last, c.Image, c.Ready)
		}
		return nil
	})
}

// mustAlwaysBeReady demands that the pod was ready since it was for the first time, for its Services as well.
func (p *twoSlots) mustAlwaysBeReady(t *testing.T) {
	t.Helper()
	for _, span := range p.watch.Unready(p.name) {
		t.Errorf("the pod was not ready from %s to %s", span[0].Format(clock), span[1].Format(clock))
	}
	for _, service := range []string{"nginx", "nginx-node"} {
		was := false
		for _, e := range p.watch.Endpoints(service) {
			ready := len(e.Unready) == 0 && len(e.Ready) > 0
			if was && !ready {
				t.Errorf("%s Service %s: endpoints ready %v, not ready %v", e.At.Format(clock), service, e.Ready, e.Unready)
			}
			was = was || ready
		}
		if !was {
			t.Errorf("Service %s never had an endpoint that is ready", service)
		}
	}
}

// tryStatus is what upgrade-status says in a slot that has an agent.
func (p *twoSlots) tryStatus(slot int) (status contract.UpgradeStatus, err error) {
	out, err := p.ns.TryExec(p.name, slots[slot], "pilot-agent", "upgrade-status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	return status, err
}

// mustServeAlone demands that one generation is left, and serves, with this Envoy.
func (p *twoSlots) mustServeAlone(t *testing.T, envoy string) {
	t.Helper()
	status, err := p.tryStatus(p.serving)
	if err != nil {
		t.Fatalf("%v", err)
	}
	if g := status.Generations; len(g) != 1 || g[0].Role != "serving" || g[0].EnvoyVersion != envoy {
		t.Errorf("want one generation, which serves with Envoy %s; upgrade-status in %s: %+v", envoy, slots[p.serving], g)
	}
}

// warnings are the events of the pod that kubectl describe shows as such: reason and message.
func (p *twoSlots) warnings(t *testing.T) (texts []string) {
	t.Helper()
	var list struct {
		Items []struct{ Reason, Message string }
	}
	p.ns.Get(t, &list, "events", "--field-selector", "type=Warning,involvedObject.name="+p.name)
	for _, e := range list.Items {
		texts = append(texts, e.Reason+": "+e.Message)
	}
	return texts
}

// withEnvoy makes an image whose Envoy is something else, and known to the cluster.
func withEnvoy(t *testing.T, name, content string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stepLimit)
	defer cancel()
	image := "understudy/proxy:" + name
	if err := shared.ImportVariant(ctx, image, oci.File{Path: cluster.Envoy, Mode: 0o755, Content: []byte(content)}); err != nil {
		t.Fatal(err)
	}
	return image
}

// scripted is withEnvoy with a script that runs in the place of Envoy; what only asks the binary is answered by the real one.
func scripted(t *testing.T, name, script string) string {
	t.Helper()
	return withEnvoy(t, name, "#!/bin/sh\ncase \" $* \" in *' --version '*|*' --hot-restart-version '*|*' --mode '*) exec "+cluster.OlderEnvoy+" \"$@\";; esac\n"+script)
}
