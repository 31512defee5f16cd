package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"understudy.mesh/demo/story"
	"understudy.mesh/tests/lab"
)

// What is applied to the cluster; what only the injector's commands read is named by its path.
var (
	//go:embed manifests/names.yaml
	namesManifest string
	//go:embed manifests/namespace.yaml
	namespaceManifest string
	//go:embed manifests/sleep.yaml
	sleepManifest string
)

const (
	manifests = "demo/inject/manifests/"
	install   = "deploy/sidecar-injector.yaml"
	// system is the injector's namespace.
	system = "understudy-system"
	// limit is how long a pod may take to be ready. On a free machine it is a few seconds.
	limit = 2 * time.Minute
	// manual is what istio-init gets by the settings of the manual's last chapter.
	manual = "istio-iptables -p 15001 -z 15006 -u 1337 -m REDIRECT -i 172.1.1.2/32 -x 192.168.0.1/32,172.1.1.1/32 -b * " +
		"-d 15090,15021,15081,9191,7013,7014 -o 7011,7012 -q 7015,7016"
)

// injection is the story.
type injection struct{ *story.Story }

func (i *injection) thePolicy() {
	i.Title("1. Which pods")
	i.Say("A namespace is labelled istio-injection=enabled, and all of its pods are injected, but those with the label notinjectapp.")
	labelled := []string{"--offline", "-n", "test1", "--namespace-labels", "istio-injection=enabled", "--settings"}
	_, err := i.injector("explain", append(slices.Clone(labelled), manifests+"selectors.yaml", "-f", manifests+"details.yaml", "--expect", "inject")...)
	i.Check(err == nil, "details is injected")
	out, err := i.injector("explain", append(slices.Clone(labelled), manifests+"selectors.yaml", "-f", manifests+"details-left-alone.yaml", "--expect", "skip")...)
	i.Check(err == nil && strings.Contains(out, "never-selector[0]"), "with that label it is not")
	i.Say("", "Where each pod says for itself, an annotation does. The manual's screen shows it with a blank at the end.")
	out, err = i.injector("explain", append(slices.Clone(labelled), manifests+"by-pod.yaml", "-f", manifests+"reviews.yaml", "--expect", "inject")...)
	i.Check(err == nil && strings.Contains(out, "pod-says-yes"), "reviews is injected")
	out, err = i.injector("explain", append(slices.Clone(labelled), manifests+"by-pod.yaml", "-f", manifests+"details.yaml", "--expect", "skip")...)
	i.Check(err == nil && strings.Contains(out, "policy-off"), "details, which says nothing, is not")
}

func (i *injection) theFile() {
	i.Title("2. By hand, without a cluster")
	arguments := []string{"--offline", "--settings", manifests + "selectors.yaml", "-f", manifests + "details.yaml"}
	i.Command("sidecar-injector", append([]string{"inject"}, arguments...))
	once, err := i.quietly("inject", arguments...)
	i.Print(story.Containing(once, "kind:", "# it knows", "- name: details", "- name: istio-init", "- name: istio-proxy", "image:"))
	i.Check(err == nil && strings.Contains(once, "name: istio-proxy") && strings.Contains(once, "name: istio-init"), "the Deployment has istio-init and istio-proxy")
	i.Check(strings.Contains(once, "# it knows nothing of a mesh"), "the rest of the file is as it was, comments as well")
	file := filepath.Join(i.dir(), "injected.yaml")
	if err := os.WriteFile(file, []byte(once), 0o600); err != nil {
		i.Fatalf("%v", err)
	}
	twice, err := i.quietly("inject", "--offline", "--settings", manifests+"selectors.yaml", "-f", file)
	i.Check(err == nil && twice == once, "a second time changes nothing")
}

func (i *injection) theInjector() {
	i.Title("3. The injector in a real Kubernetes")
	text, err := os.ReadFile(install)
	if err != nil {
		i.Fatalf("%v", err)
	}
	ctx := context.Background() // it is removed after an interrupt as well
	i.Cleanup(func() {
		// First of all nobody is asked any more.
		_, err := i.Cluster.Kubectl(ctx, nil, "delete", "mutatingwebhookconfiguration", "sidecar-injector", "--ignore-not-found")
		if err == nil {
			_, err = i.Cluster.Kubectl(ctx, bytes.NewReader(text), "delete", "--ignore-not-found", "--timeout=2m", "-f", "-")
		}
		if err != nil {
			i.Logf("the injector is left behind: %v", err)
		}
	})
	i.Command("kubectl", []string{"apply", "-f", install})
	lab.Eventually(i.T, limit, "the manifests are applied", func() error { // a kind, and then an object of it
		_, err := i.Cluster.Kubectl(ctx, bytes.NewReader(text), "apply", "-f", "-")
		return err
	})
	i.Kubectl("--namespace", system, "rollout", "status", "deployment/sidecar-injector", "--timeout", limit.String())
	i.Kubectl("--namespace", system, "get", "pods")
}

func (i *injection) thePod() {
	i.Title("4. A pod, and the same pod in the mesh")
	i.Apply(manifests+"sleep.yaml", sleepManifest)
	i.Namespace.Wait(i.T, limit, "condition=Ready", "pod/sleep")
	i.Check(i.containers() == "sleep", "it has its own container only")
	i.Say("", "Its namespace gets the label, and settings that say where the proxy's configuration is.")
	i.Kubectl("label", "namespace", i.Namespace.Name, "istio-injection=enabled", "--overwrite")
	i.Apply(manifests+"names.yaml", namesManifest)
	i.Namespace.Wait(i.T, limit, "condition=InForce", "sidecarprofile/default")
	lab.Eventually(i.T, limit, "the API server reaches the injector's Service", func() error { // kube-proxy follows the endpoints a little later
		_, err := i.Namespace.Try("run", "early", "--image=curlimages/curl", "--dry-run=server")
		return err
	})
	i.replace()
	i.Kubectl("get", "pods")
	i.Check(i.containers() == "istio-proxy sleep", "it has istio-proxy besides, and is ready")
}

func (i *injection) theName() {
	i.Title("5. A host without an address")
	out, err := i.Try("exec", "sleep", "-c", "sleep", "--", "curl", "-sS", "-o", "/dev/null", "-w", `%{remote_ip} %{http_code}\n`, "https://aliyun.com/")
	i.Check(err == nil && strings.HasPrefix(out, "240.240.") && strings.HasSuffix(out, " 200\n"), "the application was connected to a VIP, and aliyun.com answered")
}

func (i *injection) theNamespace() {
	i.Title("6. The settings of a namespace")
	i.Say("The mesh has the defaults of Alibaba Cloud's, and keeps an address out of capture; the namespace says the rest, page by page",
		"as in the manual: resources, ports and addresses, life cycle, drain, DNS.")
	i.Kubectl("--namespace", system, "patch", "sidecarprofile", "default", "--type", "merge",
		"--patch", `{"spec":{"preset":"asm","capture":{"excludeOutboundIPRanges":["192.168.0.1/32"]}}}`)
	i.Apply(manifests+"namespace.yaml", namespaceManifest)
	for namespace, of := range map[string]string{system: "the mesh", i.Namespace.Name: "the namespace"} {
		lab.Eventually(i.T, limit, "the settings of "+of+" are in force", func() error { return i.inForce(namespace) })
	}
	i.replace()
	pod := i.pod()
	i.Say("", "istio-init runs:")
	first := pod.container("istio-init")
	arguments := strings.Join(first.Args, " ")
	i.Faint("  " + arguments)
	i.Check(strings.HasPrefix(arguments, manual), "which is what the manual shows, exclusions of mesh and namespace together")
	proxy := pod.container("istio-proxy")
	i.Check(proxy.Resources.Limits["memory"] == "1025Mi" && first.Resources.Limits["cpu"] == "916m", "both containers have their resources")
	i.Check(slices.Contains(proxy.Env, variable{"TERMINATION_DRAIN_DURATION_SECONDS", "10"}), "the agent drains for 10 s")
	i.Check(strings.Join(proxy.Lifecycle.PreStop.Exec.Command, " ") == "/bin/sh -c sleep 13", "and has the hook that was asked for")
}

func (i *injection) theSwitches() {
	i.Title("7. Off")
	i.Kubectl("label", "namespace", i.Namespace.Name, "istio-injection=disabled", "--overwrite")
	i.replace()
	i.Check(i.containers() == "istio-proxy sleep", "a pod whose manifest has the proxy in it already keeps that")
	i.Kubectl("delete", "pod", "sleep")
	i.Apply(manifests+"sleep.yaml", sleepManifest)
	i.Namespace.Wait(i.T, limit, "condition=Ready", "pod/sleep")
	i.Check(i.containers() == "sleep", "created of its own manifest, it is what it was at first")
}

// injector runs and shows a command of sidecar-injector's.
func (i *injection) injector(command string, arguments ...string) (string, error) {
	i.Command("sidecar-injector", append([]string{command}, arguments...))
	out, err := i.quietly(command, arguments...)
	i.Answer(out)
	if err != nil {
		i.Answer(err.Error())
	}
	return out, err
}

func (i *injection) quietly(command string, arguments ...string) (string, error) {
	cmd := exec.Command("bin/sidecar-injector", append([]string{command}, arguments...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = errors.Join(err, errors.New(stderr.String()))
	}
	return string(out), err
}

// dir is for files, and goes with the story.
func (i *injection) dir() string {
	dir, err := os.MkdirTemp("", "demo-inject")
	if err != nil {
		i.Fatalf("%v", err)
	}
	i.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// replace has the pod created anew as it is, and waits until it is ready.
func (i *injection) replace() {
	i.Say("$ kubectl get pod sleep -o yaml | kubectl replace --force -f -")
	text := i.Namespace.Kubectl(i.T, "get", "pod", "sleep", "-o", "yaml")
	if _, err := i.Cluster.Kubectl(context.Background(), strings.NewReader(text), "replace", "--force", "-f", "-"); err != nil {
		i.Fatalf("%v", err)
	}
	i.Namespace.Wait(i.T, limit, "condition=Ready", "pod/sleep")
}

// inForce is nil if the profile of a namespace is, as it is now.
func (i *injection) inForce(namespace string) error {
	text, err := i.Namespace.Try("--namespace", namespace, "get", "sidecarprofile", "default", "-o", "json")
	if err != nil {
		return err
	}
	var profile struct {
		Metadata struct{ Generation int64 }
		Status   struct {
			ObservedGeneration int64
			Conditions         []struct{ Type, Status, Message string }
		}
	}
	if err := json.Unmarshal([]byte(text), &profile); err != nil {
		return err
	}
	if profile.Status.ObservedGeneration == profile.Metadata.Generation {
		for _, c := range profile.Status.Conditions {
			if c.Type == "InForce" && c.Status == "True" {
				return nil
			}
		}
	}
	return errors.New("its status is: " + text)
}

// pod is what the story looks at of a pod.
type pod struct {
	Spec struct{ InitContainers, Containers []part }
}

type part struct {
	Name      string
	Args      []string
	Env       []variable
	Resources struct{ Limits map[string]string }
	Lifecycle struct {
		PreStop struct{ Exec struct{ Command []string } }
	}
}

type variable struct{ Name, Value string }

func (i *injection) pod() (p pod) {
	if err := json.Unmarshal([]byte(i.Namespace.Kubectl(i.T, "get", "pod", "sleep", "-o", "json")), &p); err != nil {
		i.Fatalf("%v", err)
	}
	return p
}

// containers are the names of all that runs in the pod, in order.
func (i *injection) containers() string {
	var names []string
	for _, c := range i.pod().all() {
		if c.Name != "istio-init" {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// all are the pod's containers; where every node can, the proxy is among the init containers.
func (p pod) all() []part { return slices.Concat(p.Spec.InitContainers, p.Spec.Containers) }

func (p pod) container(name string) part {
	for _, c := range p.all() {
		if c.Name == name {
			return c
		}
	}
	return part{}
}
