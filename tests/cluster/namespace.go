package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"understudy.mesh/tests/lab"
)

const (
	// callLimit is how long one command of kubectl may take that waits for nothing.
	callLimit = time.Minute
	// goneLimit is how long a namespace may take to go, with its pods.
	goneLimit = 3 * time.Minute
	// shownLines is how much of each container's log a failed test shows.
	shownLines = 60
)

// Namespace is a test's own.
type Namespace struct {
	// Name is the namespace's in the cluster.
	Name string

	cluster *Cluster
}

// Namespace makes a namespace whose name begins with name, and that lasts as long as the test. If the test failed, its log
// then has the state, events and logs of the namespace's pods.
func (c *Cluster) Namespace(t lab.T, name string) *Namespace {
	t.Helper()
	n := &Namespace{Name: name + "-" + randomSuffix(), cluster: c}
	t.Cleanup(func() {
		if err := c.whole(); err != nil {
			t.Logf("the node cannot be brought back for the next test: %v", err)
		}
		if t.Failed() {
			t.Logf("%s", n.describe())
		}
		if err := n.remove(); err != nil {
			t.Logf("namespace %s is left behind: %v", n.Name, err)
		}
	})
	n.Kubectl(t, "create", "namespace", n.Name)
	// Pods are refused until the controller has made it.
	lab.Eventually(t, callLimit, "the namespace has its service account", func() error {
		_, err := n.Try("get", "serviceaccount", "default")
		return err
	})
	return n
}

// whole starts what a test with a fault left down.
func (c *Cluster) whole() error {
	ctx, cancel := context.WithTimeout(context.Background(), goneLimit)
	defer cancel()
	if err := c.PowerOn(ctx); err != nil {
		return err
	}
	var errs []error
	components := []Component{Containerd, APIServer, ControllerManager, Kubelet, CoreDNS}
	if c.hasIstiod() {
		components = append(components, Istiod)
	}
	for _, name := range components {
		errs = append(errs, c.Start(ctx, name))
	}
	return errors.Join(errs...)
}

func randomSuffix() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // it never fails
	return hex.EncodeToString(b)
}

func (n *Namespace) remove() error {
	// Most pods of tests have long grace periods, which nobody needs any more.
	_, err := n.Try("delete", "pods", "--all", "--grace-period=1", "--wait=false")
	ctx, cancel := context.WithTimeout(context.Background(), goneLimit)
	defer cancel()
	_, gone := n.cluster.Kubectl(ctx, nil, "delete", "namespace", n.Name, "--ignore-not-found", "--wait", "--timeout", goneLimit.String())
	return errors.Join(err, gone)
}

// Try runs kubectl in the namespace and returns its standard output. The error has what it said otherwise; within it is an
// [exec.ExitError], whose status `kubectl exec` takes from the command.
func (n *Namespace) Try(arguments ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	return n.cluster.Kubectl(ctx, nil, append([]string{"--namespace", n.Name}, arguments...)...)
}

// Kubectl is Try for what must succeed.
func (n *Namespace) Kubectl(t lab.T, arguments ...string) string {
	t.Helper()
	out, err := n.Try(arguments...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// Apply applies YAML or JSON, of as many documents as there are. What says no namespace comes into this one.
func (n *Namespace) Apply(t lab.T, manifests string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	_, err := n.cluster.Kubectl(ctx, strings.NewReader(manifests), "--namespace", n.Name, "apply", "-f", "-")
	if err != nil {
		t.Fatalf("%v", err)
	}
}

// Wait is kubectl wait: for "condition=Ready" of "pod/sleep", for "delete", for "jsonpath={.status.phase}=Succeeded".
func (n *Namespace) Wait(t lab.T, limit time.Duration, what string, objects ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit+callLimit)
	defer cancel()
	arguments := append([]string{"--namespace", n.Name, "wait", "--for", what, "--timeout", limit.String()}, objects...)
	if _, err := n.cluster.Kubectl(ctx, nil, arguments...); err != nil {
		t.Fatalf("%v", err)
	}
}

// Exec runs a command in a container and returns its standard output. It must succeed.
func (n *Namespace) Exec(t lab.T, pod, container string, argv ...string) string {
	t.Helper()
	out, err := n.TryExec(pod, container, argv...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// TryExec is Exec for what may fail: see Try for the error.
func (n *Namespace) TryExec(pod, container string, argv ...string) (string, error) {
	return n.Try(append([]string{"exec", pod, "--container", container, "--"}, argv...)...)
}

// ExitStatus is the exit status in an error of TryExec; 0 for none, -1 for another error.
func ExitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// Logs is the log of a container's present life.
func (n *Namespace) Logs(t lab.T, pod, container string) string {
	t.Helper()
	return n.Kubectl(t, "logs", pod, "--container", container)
}

// Get reads an object ("pod", "sleep") or a list ("events") as kubectl's JSON into a value.
func (n *Namespace) Get(t lab.T, into any, what ...string) {
	t.Helper()
	if err := n.TryGet(into, what...); err != nil {
		t.Fatalf("%v", err)
	}
}

// TryGet is Get for what may not be there.
func (n *Namespace) TryGet(into any, what ...string) error {
	out, err := n.Try(append([]string{"get", "--output", "json"}, what...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("get %s: %w", strings.Join(what, " "), err)
	}
	return nil
}

// describe is what one wants to know of a namespace in which a test failed.
func (n *Namespace) describe() string {
	var text strings.Builder
	show := func(arguments ...string) {
		out, err := n.Try(arguments...)
		fmt.Fprintf(&text, "$ kubectl %s\n%s", strings.Join(arguments, " "), out)
		if err != nil {
			fmt.Fprintln(&text, err)
		}
	}
	show("get", "pods,services,endpointslices", "--output", "wide")
	show("describe", "pods")
	show("get", "events", "--sort-by", ".metadata.creationTimestamp")
	var list podList
	if err := n.TryGet(&list, "pods"); err != nil {
		fmt.Fprintln(&text, err)
	}
	for _, p := range list.Items {
		for _, status := range p.statuses() {
			show("logs", p.Metadata.Name, "--container", status.Name, "--tail", fmt.Sprint(shownLines))
			if status.RestartCount > 0 {
				show("logs", p.Metadata.Name, "--container", status.Name, "--tail", fmt.Sprint(shownLines), "--previous")
			}
		}
	}
	return text.String()
}
