package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

const (
	// manyVariables is the environment of a pod that takes Istio's injector long.
	manyVariables = 1000
	// reviewsInARow are asked one after the other, so that the processor's time is many ticks of the kernel's clock.
	reviewsInARow = 200
	// reviewRate and reviewFor are the load of a cluster whose nodes all come back at once.
	reviewRate, reviewFor = 500, 5 * time.Second

	// idleConnections are those that an API server keeps to a webhook (client-go's idleConnsPerHost).
	idleConnections = 25

	// What the webhook may take. Times are for a quiet machine, so a busy one may take three times as long.
	mostOfIstios = 0.11 // of istiod's time, with manyVariables
	mostPlain    = 0.3  // ms of the processor
	mostAtRate   = 20   // ms, 99 % of reviewRate
	busy         = 3
)

// benchInject asks our webhook and istiod's about the same pods, in turn, as the API server does: with reviews over TLS. Both have
// their defaults, and know of one namespace and one node.
func benchInject(t lab.T, s settings) []result {
	programs, err := istiod.Build(context.Background(), lab.RepoRoot(t), s.cache, func(what string) { t.Logf("%s", what) })
	if err != nil {
		t.Fatalf("%v", err)
	}
	l := lab.New(t)
	i := istiod.New(t, l, programs.Istiod)
	for path, object := range injectObjects {
		i.API.Put(path, object)
	}
	i.Inject(programs)
	i.Start()
	ours, theirs := startInjector(t, l), newReviewer(l, istiod.InjectAddress, i.PID())
	var results []result
	for _, pod := range []struct {
		what      string
		variables int
	}{{"a plain pod", 0}, {fmt.Sprintf("a pod with %d variables", manyVariables), manyVariables}} {
		review := reviewOf(t, pod.variables)
		results = append(results, benchReview(t, s, "inject: "+pod.what+": ", review, ours, theirs)...)
	}
	results[1] = results[1].atMost(busy * mostPlain)
	results[2] = results[2].ratioAtMost(mostOfIstios)
	var slowest []float64
	for range s.rounds {
		slowest = append(slowest, ours.atRate(t, reviewOf(t, 0)))
	}
	// Whatever else runs only adds to it.
	what := fmt.Sprintf("inject: %d reviews/s: 99 %% within, at best", reviewRate)
	return append(results, measured(what, "ms", slowest).smallest().against("limit", []float64{mostAtRate}).atMost(busy*mostAtRate))
}

// injectObjects is the cluster: a namespace that is injected, and our settings.
var injectObjects = map[string]string{
	"/api/v1/namespaces/shop": `{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}`,
	"/api/v1/nodes/node":      `{"metadata": {"name": "node"}, "status": {"nodeInfo": {"kubeletVersion": "v1.37.0"}}}`,
	"/apis/understudy.mesh/v1alpha1/namespaces/understudy-system/sidecarprofiles/default": `{"apiVersion": "understudy.mesh/v1alpha1",
		"kind": "SidecarProfile", "metadata": {"name": "default", "namespace": "understudy-system"}, "spec": {"proxy": {"image": "proxy"}}}`,
}

// benchReview is how long an answer takes who asks, and the processor.
func benchReview(t lab.T, s settings, what string, review []byte, ours, theirs *reviewer) []result {
	var took, theirTook, cpu, theirCPU []float64
	ours.inARow(t, review)
	theirs.inARow(t, review)
	for range s.rounds {
		a, b := theirs.inARow(t, review)
		theirTook, theirCPU = append(theirTook, a...), append(theirCPU, b)
		a, b = ours.inARow(t, review)
		took, cpu = append(took, a...), append(cpu, b)
	}
	const peer = "istiod"
	return []result{
		measured(what+"answered within", "ms", took).against(peer, theirTook),
		measured(what+"processor time", "ms", cpu).against(peer, theirCPU),
	}
}

// reviewOf is a question about a pod with so many variables.
func reviewOf(t lab.T, variables int) []byte {
	var env []string
	for i := range variables {
		env = append(env, fmt.Sprintf(`{"name": "VARIABLE_NUMBER_%d", "value": "some value of the usual length %d"}`, i, i))
	}
	text := fmt.Sprintf(`{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "operation": "CREATE", "namespace": "shop",
		"kind": {"version": "v1", "kind": "Pod"}, "resource": {"version": "v1", "resource": "pods"}, "object": {"apiVersion": "v1", "kind": "Pod",
		"metadata": {"generateName": "a-", "namespace": "shop", "labels": {"app": "a"}}, "spec": {"serviceAccountName": "default", "containers": [{"name": "a", "image": "i",
		"env": [%s], "ports": [{"containerPort": 8080}], "livenessProbe": {"httpGet": {"path": "/l", "port": 8080}}}]}}}}`, strings.Join(env, ","))
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(text)); err != nil {
		t.Fatalf("write a review: %v", err)
	}
	return compact.Bytes()
}

// startInjector starts our webhook beside istiod, with a certificate in files.
func startInjector(t lab.T, l *lab.Lab) *reviewer {
	const address, status = "127.0.0.1:25017", "127.0.0.1:25014"
	dir := filepath.Join(l.Dir, "injector")
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := "clusters: [{name: c, cluster: {server: 'http://" + istiod.APIAddress + "'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(kubeconfig, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatalf("start the injector: %v", err)
	}
	lab.NewCA(t).ServerFiles(t, dir, "localhost")
	cmd := l.Out.Command(context.Background(), "env", "KUBE_FEATURE_WatchListClient=false", // as of istiod
		filepath.Join(lab.RepoRoot(t), "bin/sidecar-injector"), "serve", "--kubeconfig", kubeconfig, "--address", address,
		"--status-address", status, "--tls-cert-file", filepath.Join(dir, "tls.crt"), "--tls-key-file", filepath.Join(dir, "tls.key"), "--log_output_level", "default:none")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the injector: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lab.Eventually(t, time.Minute, "the injector is ready", func() error {
		code, body, err := l.Out.Get("http://" + status + "/readyz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("status %d: %s", code, body)
		}
		return err
	})
	return newReviewer(l, address, cmd.Process.Pid)
}

// reviewer asks a webhook.
type reviewer struct {
	client http.Client
	url    string
	pid    int // of the webhook
}

func newReviewer(l *lab.Lab, address string, pid int) *reviewer {
	return &reviewer{url: "https://" + address + "/inject", pid: pid, client: http.Client{Timeout: lab.Deadline, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return l.Out.Dial(ctx, network, address)
		},
		// As the API server, which has each of its requests balanced.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}, MaxIdleConnsPerHost: idleConnections,
	}}}
}

// ask is the milliseconds until the answer, which injects.
func (r *reviewer) ask(review []byte) (float64, error) {
	begin := time.Now()
	response, err := r.client.Post(r.url, "application/json", bytes.NewReader(review))
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	took := milliseconds(time.Since(begin))
	var answer admissionv1.AdmissionReview
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err == nil && (answer.Response == nil || !answer.Response.Allowed || !bytes.Contains(answer.Response.Patch, []byte(`"istio-proxy"`))) {
		err = fmt.Errorf("it does not inject: status %d: %.1000s", response.StatusCode, body)
	}
	return took, err
}

// inARow asks many times, one after the other: how long each has taken, and of each the processor's time.
func (r *reviewer) inARow(t lab.T, review []byte) (took []float64, cpu float64) {
	before := cpuTime(t, r.pid)
	for range reviewsInARow {
		one, err := r.ask(review)
		if err != nil {
			t.Fatalf("ask %s: %v", r.url, err)
		}
		took = append(took, one)
	}
	return took, milliseconds(cpuTime(t, r.pid)-before) / reviewsInARow
}

// atRate asks reviewRate times a second, whether or not answers come, and returns what 99 % of them have taken since they were due.
func (r *reviewer) atRate(t lab.T, review []byte) float64 {
	tick := time.NewTicker(time.Second / reviewRate)
	defer tick.Stop()
	n := int(reviewFor.Seconds() * reviewRate)
	took, failed := make([]float64, n), make([]error, n)
	var group sync.WaitGroup
	begin := time.Now()
	for i := range n {
		due := begin.Add(time.Duration(i+1) * time.Second / reviewRate)
		for time.Now().Before(due) { // a tick that was missed is made up for
			<-tick.C
		}
		group.Go(func() {
			_, failed[i] = r.ask(review)
			took[i] = milliseconds(time.Since(due))
		})
	}
	group.Wait()
	if i := slices.IndexFunc(failed, func(err error) bool { return err != nil }); i >= 0 {
		t.Fatalf("ask %s: %v", r.url, failed[i])
	}
	slices.Sort(took)
	return took[n*99/100]
}
