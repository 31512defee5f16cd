package serve

import (
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"understudy.mesh/pkg/inject/webhook"
)

// BenchmarkReview answers a review of a plain pod, and of one with 1,000 variables: all that a pod costs but for TLS.
func BenchmarkReview(b *testing.B) {
	c := &caches{options: Options{Namespace: "own"}, profiles: newProfiles("own"), nodes: newNodes(), istiods: newIstiods(nil, slog.New(slog.DiscardHandler)), log: slog.New(slog.DiscardHandler)}
	synced := func() bool { return true }
	c.namespaces = watched{store: cache.NewStore(cache.MetaNamespaceKeyFunc), ready: synced}
	for _, w := range []*watched{&c.sidecarProfiles, &c.configurations, &c.nodeVersions, &c.secret} {
		*w = watched{store: cache.NewStore(cache.MetaNamespaceKeyFunc), ready: synced}
	}
	if err := c.namespaces.store.Add(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}}); err != nil {
		b.Fatal(err)
	}
	c.nodes.set("a", "v1.37.0")
	handler := webhook.NewHandler(c.mutate, webhook.NewMetrics(prometheus.NewRegistry()), c.log)
	for name, variables := range map[string]int{"plain": 0, "1000env": 1000} {
		var env []string
		for i := range variables {
			env = append(env, fmt.Sprintf(`{"name":"VARIABLE_NUMBER_%d","value":"some value of the usual length %d"}`, i, i))
		}
		review := fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","namespace":"shop",
			"resource":{"group":"","version":"v1","resource":"pods"},"object":{"apiVersion":"v1","kind":"Pod","metadata":{"generateName":"a-","labels":{"app":"a"}},"spec":{"containers":[
			{"name":"a","image":"i","env":[%s],"ports":[{"containerPort":8080}],"livenessProbe":{"httpGet":{"path":"/l","port":8080}}}]}}}}`, strings.Join(env, ","))
		c.profiles.set("own", profileOf(b, "own", 1, `{"proxy": {"image": "p"}}`))
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := processorTime(b)
			for b.Loop() {
				r := httptest.NewRequest("POST", "/inject", strings.NewReader(review))
				r.Header.Set("Content-Type", "application/json")
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				if !strings.Contains(w.Body.String(), `"patch"`) {
					b.Fatal(w.Body)
				}
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is this process's, which is not longer because others have the processor.
func processorTime(b *testing.B) int64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return used.Utime.Nano() + used.Stime.Nano()
}
