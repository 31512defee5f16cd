package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.mesh/demo/story"
	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

//go:embed manifests/fleet.yaml
var manifest string

const (
	// system is the injector's namespace.
	system = "understudy-system"
	// limit is how long pods may take to be ready. On a free machine it is a few seconds.
	limit = 3 * time.Minute
	pods  = 5
	// missing is an image that nobody has.
	missing = "understudy/proxy:v3"
)

// fleet is the story.
type fleet struct {
	*story.Story
	watch *cluster.Watch
	load  *cluster.Load
}

func (f *fleet) thePods() {
	f.Title("1. Five pods with two slots")
	f.Say("The injector is there. Its settings give each pod a second slot for the proxy, which idles.")
	f.install()
	f.Say("$ kubectl label namespace " + f.Namespace.Name + " istio-injection=enabled")
	f.Namespace.Kubectl(f.T, "label", "namespace", f.Namespace.Name, "istio-injection=enabled")
	f.settle()
	f.Apply("demo/fleet/manifests/fleet.yaml", manifest)
	f.Namespace.Wait(f.T, limit, "condition=Available", "deployment/shop")
	f.images()
	f.Check(f.run(cluster.ProxyDev) == pods, "five pods run "+cluster.ProxyDev+", their other slot the empty image")
	f.watch = f.Namespace.Watch(f.T)
	f.startLoad()
	f.Say("", "From here on there are 100 requests a second.")
}

func (f *fleet) theUpgrade() {
	f.Title("2. The upgrade: one command")
	f.Say("The pauses after the first pods are half an hour and more unless one says otherwise; a demo says otherwise.")
	said, err := f.upgrade("--image", cluster.ProxyV2, "--max-unavailable", "2", "--observe", "2s", "--bake", "3s", "--soak", "0s")
	f.Check(err == nil && strings.Contains(said, "Done: 5 of 5 pods"), "it says that it is done")
	f.images()
	f.Check(f.run(cluster.ProxyV2) == pods, "five pods run "+cluster.ProxyV2)
	profile := f.Kubectl("get", "sidecarprofile", "default", "-o", "jsonpath={.spec.proxy.image}")
	f.Check(profile == cluster.ProxyV2, "and new pods get it")
}

func (f *fleet) theBadImage() {
	f.Title("3. An image that is bad")
	f.Say("Nobody has " + missing + ". The first pod finds out, and the others are never asked.")
	said, err := f.upgrade("--image", missing, "--max-unavailable", "2", "--observe", "2s", "--bake", "3s", "--soak", "0s")
	f.Check(err != nil && strings.Contains(said, "Stopped: 0 of 5 pods"), "it stops")
	f.Check(strings.Count(said, "failed: pod") == 1, "after one pod, with the reason")
	f.Check(f.run(cluster.ProxyV2) == pods, "five pods run "+cluster.ProxyV2+" as before")
	f.Kubectl("get", "events", "--field-selector", "reason=Stopped", "-o", "custom-columns=REASON:.reason,MESSAGE:.message")
}

func (f *fleet) theUndo() {
	f.Title("4. Back")
	f.Say("That nobody gets the bad image, new pods least of all:")
	_, err := f.upgrade("--undo")
	f.Check(err == nil, "it is undone")
	profile := f.Kubectl("get", "sidecarprofile", "default", "-o", "jsonpath={.spec.proxy.image}")
	f.Check(profile == cluster.ProxyV2, "new pods get "+cluster.ProxyV2)
	f.Kubectl("get", "sidecarupgrade")
}

func (f *fleet) theCount() {
	f.Title("5. What came of it")
	report := f.load.Stop(f.T)
	answers, failures := uint64(0), uint64(0)
	for _, flow := range report.Flows {
		answers, failures = answers+flow.Total.OK, failures+flow.Total.Failures()
		f.Faint(fmt.Sprintf("  %s: %d answers, %d failures %v", flow.Name, flow.Total.OK, flow.Total.Failures(), flow.Failures))
	}
	f.Say(fmt.Sprintf("%d requests were answered, %d failed", answers, failures))
	f.Check(answers > 0 && failures == 0, "none failed")
	unready := 0
	for _, p := range f.Namespace.Pods(f.T, "app=shop") {
		if len(f.watch.Unready(p.Name)) > 0 {
			unready++
		}
	}
	f.Check(unready <= 1, "no pod was ever unready, but the one that was to pull what nobody has")
}

// upgrade runs the command, shows what it says as it says it, and returns that.
func (f *fleet) upgrade(arguments ...string) (string, error) {
	arguments = append([]string{"upgrade", "-n", f.Namespace.Name}, arguments...)
	f.Command("sidecar-injector", arguments)
	ctx, cancel := context.WithTimeout(context.Background(), 2*limit)
	defer cancel()
	cmd, err := f.Cluster.Administer(ctx, append([]string{filepath.Join("bin", "sidecar-injector")}, arguments...)...)
	if err != nil {
		f.Fatalf("%v", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		f.Fatalf("%v", err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	err = cmd.Start()
	write.Close()
	if err != nil {
		f.Fatalf("%v", err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(read); lines.Scan(); {
		f.Faint("  " + lines.Text())
		said.WriteString(lines.Text() + "\n")
	}
	return said.String(), errors.Join(cmd.Wait(), read.Close())
}

// install installs the injector, until the story ends.
func (f *fleet) install() {
	ctx := context.Background() // it is removed after an interrupt as well
	const file = "deploy/sidecar-injector.yaml"
	f.Cleanup(func() {
		// First of all nobody is asked any more.
		_, err := f.Cluster.Kubectl(ctx, nil, "delete", "mutatingwebhookconfiguration", "sidecar-injector", "--ignore-not-found")
		if err == nil {
			_, err = f.Cluster.Kubectl(ctx, nil, "delete", "--ignore-not-found", "--timeout=2m", "-f", file)
		}
		if err != nil {
			f.Logf("the injector is left behind: %v", err)
		}
	})
	f.Command("kubectl", []string{"apply", "-f", file})
	lab.Eventually(f.T, limit, "the manifests are applied", func() error { // a kind, and then an object of it
		_, err := f.Cluster.Kubectl(ctx, nil, "apply", "-f", file)
		return err
	})
	f.Namespace.Kubectl(f.T, "--namespace", system, "rollout", "status", "deployment/sidecar-injector", "--timeout", limit.String())
}

// settle waits until pods of the namespace are injected.
func (f *fleet) settle() {
	lab.Eventually(f.T, limit, "pods of the namespace are injected", func() error {
		out, err := f.Namespace.Try("run", "early", "--image=curlimages/curl", "--dry-run=server", "-o", "yaml")
		if err == nil && !strings.Contains(out, "istio-proxy") {
			err = errors.New("they are not")
		}
		return err
	})
}

// slots is what the story looks at of a pod.
type slots struct {
	Items []struct {
		Metadata struct{ Name string }
		Spec     struct {
			InitContainers, Containers []struct{ Name, Image string }
		}
	}
}

func (f *fleet) slots() (s slots) {
	f.Namespace.Get(f.T, &s, "pods", "--selector", "app=shop")
	return s
}

// run is how many pods have an image in one slot, and the empty one in the other.
func (f *fleet) run(image string) (n int) {
	for _, p := range f.slots().Items {
		var images []string
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			if strings.HasPrefix(c.Name, "istio-proxy") {
				images = append(images, c.Image)
			}
		}
		if len(images) == 2 && slices.Contains(images, image) && slices.Contains(images, cluster.Empty) {
			n++
		}
	}
	return n
}

// images shows which slot has which.
func (f *fleet) images() {
	f.Say("$ kubectl get pods -o ...")
	for _, p := range f.slots().Items {
		line := "  " + p.Metadata.Name
		for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
			if strings.HasPrefix(c.Name, "istio-proxy") {
				line += "  " + c.Name + "=" + c.Image
			}
		}
		f.Faint(line)
	}
}

// startLoad is of new and kept connections to the Service, from when on it leads to the pods.
func (f *fleet) startLoad() {
	var service struct{ Spec struct{ ClusterIP string } }
	f.Namespace.Get(f.T, &service, "service", "shop")
	target := "http://" + service.Spec.ClusterIP + "/"
	flows := []load.Flow{
		{Name: "new connections", Kind: load.HTTP1New, Target: target, Rate: 50, Want: "server=nginx"},
		{Name: "kept connections", Kind: load.HTTP1Keep, Target: target, Rate: 50, Want: "server=nginx"},
	}
	lab.Eventually(f.T, limit, "the Service leads to the pods", func() error {
		try := f.Namespace.Load(f.T, cluster.FromNode(), flows...)
		try.Await(f.T, limit, 10)
		for _, flow := range try.Stop(f.T).Flows {
			if flow.Total.Failures() > 0 {
				return errors.New(flow.Name + " fail")
			}
		}
		return nil
	})
	f.load = f.Namespace.Load(f.T, cluster.FromNode(), flows...)
}
