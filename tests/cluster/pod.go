package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"understudy.mesh/tests/cluster/internal/node"
	"understudy.mesh/tests/cluster/internal/registry"
	"understudy.mesh/tests/lab"
)

// Pod is what tests look at of a pod, at one moment.
type Pod struct {
	Name, UID, IP, Phase, Reason string
	Labels, Annotations          map[string]string
	// Ready is the condition of the pod, by which Services send to it; Deleting is that it is about to go.
	Ready, Deleting bool
	// Containers are those of all kinds, by name.
	Containers map[string]Container
}

// Container is what tests look at of a container.
type Container struct {
	// ID is containerd's; another life of the container has another one.
	ID, Image string
	Ready     bool
	// Started is that its postStart hook is done.
	Started  bool
	Restarts int
	// State is of the present life, Last of the one before.
	State, Last State
}

// State is a life of a container. One of Running, Waiting and Terminated is set; all are empty where there was no life.
type State struct {
	Running    bool
	Waiting    string // the reason: ImagePullBackOff
	Terminated string // the reason: Completed, Error, OOMKilled
	ExitCode   int
	Message    string // with Waiting; with Terminated the termination message, /dev/termination-log
	Started    time.Time
	Finished   time.Time
}

// String is the state as `kubectl get pods` would have it.
func (s State) String() string {
	switch {
	case s.Running:
		return "Running"
	case s.Terminated != "":
		return fmt.Sprintf("%s (exit %d)", s.Terminated, s.ExitCode)
	}
	return s.Waiting
}

// podList and podObject are as much of Kubernetes' own form as is read.
type podList struct{ Items []podObject }

type podObject struct {
	Metadata struct {
		Name, UID           string
		Labels, Annotations map[string]string
		DeletionTimestamp   *time.Time
	}
	Status struct {
		Phase, PodIP, Reason  string
		Conditions            []struct{ Type, Status string }
		InitContainerStatuses []containerStatus
		ContainerStatuses     []containerStatus
		// What kubectl debug adds.
		EphemeralContainerStatuses []containerStatus
	}
}

type containerStatus struct {
	Name, Image, ContainerID string
	Ready                    bool
	Started                  *bool
	RestartCount             int
	State, LastState         containerState
}

type containerState struct {
	Waiting    *struct{ Reason, Message string }
	Running    *struct{ StartedAt time.Time }
	Terminated *struct {
		Reason, Message       string
		ExitCode              int
		StartedAt, FinishedAt time.Time
	}
}

func (p podObject) statuses() []containerStatus {
	return slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses)
}

func (p podObject) pod() Pod {
	pod := Pod{
		Name: p.Metadata.Name, UID: p.Metadata.UID, IP: p.Status.PodIP, Phase: p.Status.Phase, Reason: p.Status.Reason,
		Labels: p.Metadata.Labels, Annotations: p.Metadata.Annotations, Deleting: p.Metadata.DeletionTimestamp != nil,
		Containers: make(map[string]Container),
	}
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			pod.Ready = c.Status == "True"
		}
	}
	for _, s := range p.statuses() {
		_, id, _ := strings.Cut(s.ContainerID, "://")
		pod.Containers[s.Name] = Container{
			ID: id, Image: s.Image, Ready: s.Ready, Started: s.Started != nil && *s.Started, Restarts: s.RestartCount,
			State: s.State.state(), Last: s.LastState.state(),
		}
	}
	return pod
}

func (s containerState) state() State {
	switch {
	case s.Running != nil:
		return State{Running: true, Started: s.Running.StartedAt}
	case s.Terminated != nil:
		t := s.Terminated
		return State{Terminated: t.Reason, ExitCode: t.ExitCode, Message: t.Message, Started: t.StartedAt, Finished: t.FinishedAt}
	case s.Waiting != nil:
		return State{Waiting: s.Waiting.Reason, Message: s.Waiting.Message}
	}
	return State{}
}

// Pod is a pod as it is now. It must be there.
func (n *Namespace) Pod(t lab.T, name string) Pod {
	t.Helper()
	p, err := n.TryPod(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return p
}

// TryPod is Pod for one that may not be there.
func (n *Namespace) TryPod(name string) (Pod, error) {
	var object podObject
	if err := n.TryGet(&object, "pod", name); err != nil {
		return Pod{}, err
	}
	return object.pod(), nil
}

// Pods are those that a selector ("app=nginx") finds.
func (n *Namespace) Pods(t lab.T, selector string) []Pod {
	t.Helper()
	var list podList
	n.Get(t, &list, "pods", "--selector", selector)
	pods := make([]Pod, 0, len(list.Items))
	for _, object := range list.Items {
		pods = append(pods, object.pod())
	}
	return pods
}

// Process is the first process of a container's present life, by the number that the machine has for it. Numbers grow.
func (n *Namespace) Process(t lab.T, pod, container string) int {
	t.Helper()
	id := n.Pod(t, pod).Containers[container].ID
	if id == "" {
		t.Fatalf("pod %s has no container %s that was ever started", pod, container)
	}
	pids, err := group(n.cluster.dir).Processes(id)
	if err != nil || len(pids) == 0 {
		t.Fatalf("find a process of container %s of pod %s: %v, %v", container, pod, pids, err)
	}
	return slices.Min(pids)
}

// ContainersOf are the IDs of the containers of an image that containerd has. The API server knows of one only when its
// postStart hook is done. There must be one.
func (c *Cluster) ContainersOf(t lab.T, image string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callLimit)
	defer cancel()
	cmd, err := c.Command(ctx, node.BinDir+"/ctr", "--namespace", "k8s.io", "containers", "list", "--quiet", "image=="+registry.Qualify(image))
	if err != nil {
		t.Fatalf("%v", err)
	}
	out, err := cmd.Output()
	ids := strings.Fields(string(out))
	if err != nil || len(ids) == 0 {
		t.Fatalf("list the containers of %s: %v, %q", image, err, out)
	}
	return ids
}

// AwaitEnd waits until a container has no process any more. It needs no component of the node.
func (c *Cluster) AwaitEnd(t lab.T, limit time.Duration, id string) {
	t.Helper()
	lab.Eventually(t, limit, "container "+id+" ends", func() error {
		if pids, err := group(c.dir).Processes(id); err == nil && len(pids) > 0 { // an error: its group is gone
			return fmt.Errorf("it has the processes %v", pids)
		}
		return nil
	})
}
