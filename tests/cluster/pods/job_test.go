package pods

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"understudy.mesh/tests/cluster"
	"understudy.mesh/tests/lab"
)

// TestJob runs Jobs to their end, in both of the ways of docs/trouble.md: the pod ends with its application, whose exit
// status decides about the Job, and the proxy's is 0.
func TestJob(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(lab.RepoRoot(t), "docs", "trouble.md"))
	if err != nil {
		t.Fatal(err)
	}
	quit := regexp.MustCompile("last act must be `(curl [^`]*)`").FindSubmatch(text)
	if quit == nil {
		t.Fatal("docs/trouble.md has no last act of a Job")
	}
	const work = "curl -sSf http://shop.world.test/ || exit 9; "
	jobs := []struct {
		name, command string
		native        bool
		status        int
	}{
		{"native", work, true, 0},
		{"native-fails", work + "exit 3", true, 3},
		{"classic", work + string(quit[1]), false, 0},
		{"classic-fails", work + string(quit[1]) + "; exit 3", false, 3},
	}
	ns := shared.Namespace(t, "job")
	manifests := []string{mesh}
	for _, job := range jobs {
		pod := firstPod(t, ns, job.name, "spec: {restartPolicy: Never, containers: [{name: "+app+", command: [sh, -c, '"+job.command+"']}]}")
		if job.native {
			pod = nativeSidecar(t, pod)
		}
		head := "{apiVersion: batch/v1, kind: Job, metadata: {name: " + job.name + "}, spec: {backoffLimit: 0}}"
		manifests = append(manifests, workload(t, head, pod, object{"test": job.name}))
	}
	ns.Apply(t, join(manifests...))
	for _, job := range jobs {
		t.Run(job.name, func(t *testing.T) {
			condition, phase := "condition=Complete", "Succeeded"
			if job.status != 0 {
				condition, phase = "condition=Failed", "Failed"
			}
			ns.Wait(t, podLimit, condition, "job/"+job.name)
			pods := ns.Pods(t, "test="+job.name)
			if len(pods) != 1 || pods[0].Phase != phase {
				t.Fatalf("the Job has pods %+v", pods)
			}
			mustHaveEnded(t, pods[0], app, job.status)
			mustHaveEnded(t, pods[0], proxy, 0)
			if log := ns.Logs(t, pods[0].Name, app); !regexp.MustCompile(`^server=world\n`).MatchString(log) {
				t.Errorf("the application's work: %q", log)
			}
		})
	}
}

// mustHaveEnded demands that a container's first life ended with a status.
func mustHaveEnded(t *testing.T, pod cluster.Pod, container string, status int) {
	t.Helper()
	if c := pod.Containers[container]; c.State.Terminated == "" || c.State.ExitCode != status || c.Restarts > 0 {
		t.Errorf("container %s of %s: %v after %d restarts, want exit status %d", container, pod.Name, c.State, c.Restarts, status)
	}
}
