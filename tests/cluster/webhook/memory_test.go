package webhook

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"understudy.mesh/tests/freeport"
)

const (
	// namespaces is how many a large cluster has, most MiB what the injector may take of memory with them at any time.
	manyNamespaces = 2000
	mostMiB        = 70
)

// TestLongWebhookMemory is the injector in a large cluster: 2,000 namespaces with what tools write into their annotations.
func TestLongWebhookMemory(t *testing.T) {
	if !*long {
		t.Skip("a long form: make soak")
	}
	w := newWorld(t)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for n := worker; n < manyNamespaces; n += 8 {
				_, err := w.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
					Name: fmt.Sprintf("many-%d", n), Labels: map[string]string{"istio-injection": "enabled", "team": fmt.Sprintf("team-%d", n%50)},
					Annotations: map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("x", 4096)},
				}}, metav1.CreateOptions{})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	for _, n := range []int{0, 7, 1999} {
		w.account(t, fmt.Sprintf("many-%d", n))
	}
	port := freeport.Get(t)
	i := w.start(t, buildInjector(t), port, "--url", fmt.Sprintf("https://127.0.0.1:%d/inject", port))
	w.configuration(t, 4)
	w.mended(t, "many-0", "the first pod")
	l := w.load("many-1999")
	for range 500 {
		if injected, err := w.create("many-7", pod()); err != nil || !injected {
			t.Fatalf("injected: %v, %v", injected, err)
		}
	}
	l.stop(t)
	mib := peakMiB(t, i.process.Process.Pid)
	t.Logf("%d namespaces: at most %d MiB", manyNamespaces, mib)
	if mib > mostMiB {
		t.Errorf("%d MiB with %d namespaces, more than %d", mib, manyNamespaces, mostMiB)
	}
}

// peakMiB is how much memory a process has had at most.
func peakMiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	peak := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if peak == nil {
		t.Fatalf("no peak of memory in %s", status)
	}
	kib, err := strconv.Atoi(string(peak[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}
