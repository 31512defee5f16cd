package restart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"understudy.mesh/pkg/inject"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
)

// shop is a namespace of the fake with its settings. The pods of its workloads were made by old ones.
type shop struct {
	*fake
	t        *testing.T
	old, new Settings
	serial   int
}

func settingsWith(t *testing.T, spec string) Settings {
	t.Helper()
	profiles, err := offline.ReadProfiles(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := profiles.Add([]byte(`{"apiVersion": "understudy.mesh/v1alpha1", "kind": "SidecarProfile", "metadata": {"name": "default", "namespace": "understudy-system"}, "spec": ` + spec + `}`)); err != nil {
		t.Fatal(err)
	}
	return Settings{Profiles: profiles, Namespace: inject.Namespace{Name: "shop", Labels: map[string]string{"istio-injection": "enabled"}}}
}

func newShop(t *testing.T) *shop {
	return &shop{fake: newFake(), t: t, old: settingsWith(t, `{"proxy": {"image": "proxy:v1"}}`), new: settingsWith(t, `{"proxy": {"image": "proxy:v2"}}`)}
}

const podPath = "/api/v1/namespaces/shop/pods/"

// kinds are the paths of the kinds, and their apiVersions.
var kinds = map[string][2]string{
	"Deployment": {"/apis/apps/v1/namespaces/shop/deployments/", "apps/v1"}, "StatefulSet": {"/apis/apps/v1/namespaces/shop/statefulsets/", "apps/v1"},
	"DaemonSet": {"/apis/apps/v1/namespaces/shop/daemonsets/", "apps/v1"}, "ReplicaSet": {"/apis/apps/v1/namespaces/shop/replicasets/", "apps/v1"},
	"CloneSet":              {"/apis/apps.kruise.io/v1alpha1/namespaces/shop/clonesets/", "apps.kruise.io/v1alpha1"},
	"KruiseStatefulSet":     {"/apis/apps.kruise.io/v1beta1/namespaces/shop/statefulsets/", "apps.kruise.io/v1beta1"},
	"KruiseDaemonSet":       {"/apis/apps.kruise.io/v1alpha1/namespaces/shop/daemonsets/", "apps.kruise.io/v1alpha1"},
	"UnitedDeployment":      {"/apis/apps.kruise.io/v1alpha1/namespaces/shop/uniteddeployments/", "apps.kruise.io/v1alpha1"},
	"Rollout":               {"/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/", "argoproj.io/v1alpha1"},
	"ReplicationController": {"/api/v1/namespaces/shop/replicationcontrollers/", "v1"},
	"Job":                   {"/apis/batch/v1/namespaces/shop/jobs/", "batch/v1"},
	"Prometheus":            {"/apis/monitoring/v1/namespaces/shop/prometheuses/", "monitoring/v1"},
}

// workload adds one with pods, whose spec has more fields ("" or `"a": 1`).
func (s *shop) workload(kind, name string, pods int, more string) {
	s.t.Helper()
	template := fmt.Sprintf(`{"metadata": {"labels": {"app": %q}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}`, name)
	if more != "" {
		more = ", " + more
	}
	k := kinds[kind]
	s.put(k[0]+name, fmt.Sprintf(`{"metadata": {"name": %q, "namespace": "shop", "uid": %q, "generation": 1}, "spec": {"replicas": %[3]d, "selector": {"matchLabels": {"app": %[1]q}}, "template": %[4]s%[5]s},
		"status": {"observedGeneration": 1, "replicas": %[3]d, "updatedReplicas": %[3]d, "desiredNumberScheduled": %[3]d, "updatedNumberScheduled": %[3]d}}`, name, kind+name, pods, template, more))
	for range pods {
		s.pod(s.old, kind, name)
	}
}

// pod adds a pod of a workload as settings make it.
func (s *shop) pod(by Settings, kind, name string) string {
	owner := object{"apiVersion": kinds[kind][1], "kind": strings.TrimPrefix(kind, "Kruise"), "name": name, "uid": kind + name, "controller": true}
	text, _ := json.Marshal(object{"apiVersion": "v1", "kind": "Pod", "metadata": object{"labels": object{"app": name}}, "spec": object{"containers": []any{object{"name": "app", "image": "app"}}}})
	w, err := offline.NewWorkload(text)
	if err != nil {
		s.t.Fatal(err)
	}
	settings, _, err := inject.Settings(w.Pod, by.Profiles.Base("shop"))
	if err != nil {
		s.t.Fatal(err)
	}
	if text, _, err = w.Patched(settings, by.Namespace, false); err != nil {
		s.t.Fatal(err)
	}
	o := object{}
	_ = json.Unmarshal(text, &o)
	s.serial++
	pod := fmt.Sprintf("%s-%d", name, s.serial-1)
	m := o["metadata"].(object)
	m["name"], m["namespace"], m["uid"], m["creationTimestamp"] = pod, "shop", pod+"-uid", s.now.Add(time.Duration(s.serial)*time.Millisecond).Format(time.RFC3339)
	if kind != "Pod" {
		m["ownerReferences"] = []any{owner}
	}
	o["status"] = object{"phase": "Running", "conditions": []any{object{"type": "Ready", "status": "True"}}}
	s.objects[podPath+pod] = o
	return pod
}

// replace is a controller: it makes new pods in the place of all of a workload's.
func (s *shop) replace(by Settings, kind, name string) {
	for path, o := range s.objects {
		m := o["metadata"].(object)
		refs, _ := m["ownerReferences"].([]any)
		if strings.HasPrefix(path, podPath) && len(refs) > 0 && refs[0].(object)["uid"] == kind+name {
			delete(s.objects, path)
			defer s.pod(by, kind, name)
		}
	}
}

// run runs the command, and returns what it says.
func (s *shop) run(o Options) (string, error) {
	o.every = 5 * time.Millisecond
	if o.Workloads == 0 {
		o.Workloads = 5
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Second
	}
	var out lockedBuffer
	err := Run(s.t.Context(), s.cluster(s.t), s.new, o, &out)
	return regexp.MustCompile(` in \d+s`).ReplaceAllString(out.String(), ""), err
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestKinds restarts one workload of each kind, and sees how.
func TestKinds(t *testing.T) {
	const rolling = `"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": `
	for _, tt := range []struct {
		kind, more string
		wrote      string // what the API server was told
		says       string // if the workload is left alone
	}{
		{"Deployment", "", "patch x", ""},
		{"Deployment", `"paused": true`, "", "it is paused: spec.paused"},
		{"StatefulSet", "", "patch x", ""},
		{"StatefulSet", `"updateStrategy": {"type": "OnDelete"}`, "evict x-0, evict x-1", ""},
		{"StatefulSet", rolling + `{"partition": 2}}`, "", "spec.updateStrategy.rollingUpdate.partition keeps them"},
		{"DaemonSet", "", "patch x", ""},
		{"DaemonSet", `"updateStrategy": {"type": "OnDelete"}`, "evict x-0, evict x-1", ""},
		{"ReplicaSet", "", "evict x-0, evict x-1", ""},
		{"ReplicationController", `"selector": {"app": "x"}`, "evict x-0, evict x-1", ""},
		{"CloneSet", `"updateStrategy": {"type": "ReCreate"}`, "patch x", ""},
		{"CloneSet", `"updateStrategy": {"type": "InPlaceIfPossible"}`, "evict x-0, evict x-1", ""},
		{"CloneSet", `"updateStrategy": {"paused": true}`, "", "it is paused: spec.updateStrategy.paused"},
		{"CloneSet", `"updateStrategy": {"partition": "100%"}`, "", "spec.updateStrategy.partition keeps them"},
		{"KruiseStatefulSet", "", "patch x", ""},
		{"KruiseStatefulSet", rolling + `{"podUpdatePolicy": "InPlaceOnly"}}`, "evict x-0, evict x-1", ""},
		{"KruiseStatefulSet", rolling + `{"paused": true}}`, "", "it is paused: spec.updateStrategy.rollingUpdate.paused"},
		{"KruiseDaemonSet", rolling + `{"rollingUpdateType": "Standard"}}`, "patch x", ""},
		{"KruiseDaemonSet", rolling + `{"rollingUpdateType": "InPlaceIfPossible"}}`, "evict x-0, evict x-1", ""},
		{"Rollout", "", "patch x", ""},
		{"Job", "", "", "a Job's pods are not replaced: they end with it"},
		{"Pod", "", "", "nobody makes it anew: delete it, and create it again"},
		{"Prometheus", "", "", "monitoring/v1 Prometheus is not known here: restart it as its operator says"},
	} {
		s := newShop(t)
		if tt.kind == "Pod" {
			s.pod(s.old, "Pod", "x")
		} else {
			s.workload(tt.kind, "x", 2, tt.more)
		}
		s.patched = func(_ string, o object) {
			o["status"].(object)["restartedAt"] = o["spec"].(object)["restartAt"] // a Rollout's
			s.replace(s.new, tt.kind, "x")
		}
		s.evict = func(pod string) int {
			delete(s.objects, pod)
			s.pod(s.new, tt.kind, "x")
			return http.StatusCreated
		}
		dry, err := s.run(Options{DryRun: true})
		if wrote := s.wrote(); err != nil || len(wrote) > 0 || !strings.Contains(dry, "image proxy:v1 -> proxy:v2") {
			t.Errorf("%s %s, dry: %v, %v\n%s", tt.kind, tt.more, err, wrote, dry)
		}
		says, err := s.run(Options{})
		if wrote := strings.Join(s.wrote(), ", "); wrote != tt.wrote {
			t.Errorf("%s %s: %q, want %q\n%s", tt.kind, tt.more, wrote, tt.wrote, says)
		}
		if tt.says != "" {
			if !strings.Contains(says, "left as it is: "+tt.says+" (") || err == nil || !strings.Contains(err.Error(), "not restarted: ") {
				t.Errorf("%s %s: %v\n%s", tt.kind, tt.more, err, says)
			}
			continue
		}
		if err != nil || !strings.Contains(says, "x: restarted, 2 pods (2 of 2 pods: image proxy:v1 -> proxy:v2)\n") {
			t.Errorf("%s %s: %v\n%s", tt.kind, tt.more, err, says)
		}
		if again, err := s.run(Options{}); err != nil || again != "1 workload: nothing to do\n" || strings.Join(s.wrote(), ", ") != tt.wrote {
			t.Errorf("%s %s, again: %v\n%s", tt.kind, tt.more, err, again)
		}
	}
}

// united adds a UnitedDeployment x with one subset, the workload x-a with two pods.
func (s *shop) united(of, kind, subsets, more string) {
	s.t.Helper()
	s.workload(kind, "x-a", 2, "")
	united := kinds["UnitedDeployment"]
	s.objects[kinds[kind][0]+"x-a"]["metadata"].(object)["ownerReferences"] = []any{object{"apiVersion": united[1], "kind": "UnitedDeployment", "name": "x", "uid": "united", "controller": true}}
	s.put(united[0]+"x", fmt.Sprintf(`{"metadata": {"name": "x", "namespace": "shop", "uid": "united", "generation": 1}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "x-a"}},
		"template": {%q: {"spec": {%s"template": {"metadata": {"labels": {"app": "x-a"}}, "spec": {"containers": [{"name": "app", "image": "app"}]}}}}}%s},
		"status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2}}`, of, subsets, more))
}

// TestUnitedDeployment restarts one of each kind of its subsets: what counts is its own template, and how those get new pods.
func TestUnitedDeployment(t *testing.T) {
	for _, tt := range []struct {
		of, kind, subsets, more string
		wrote, says             string
	}{
		{"deploymentTemplate", "Deployment", "", "", "patch x", ": restarted, 2 pods (2 of 2 pods: image proxy:v1 -> proxy:v2)"},
		{"statefulSetTemplate", "StatefulSet", "", "", "patch x", ": restarted, 2 pods ("},
		{"statefulSetTemplate", "StatefulSet", `"updateStrategy": {"type": "OnDelete"}, `, "", "evict x-a-0, evict x-a-1", ": restarted, 2 pods ("},
		{"advancedStatefulSetTemplate", "KruiseStatefulSet", "", "", "patch x", ": restarted, 2 pods ("},
		{"cloneSetTemplate", "CloneSet", "", "", "patch x", ": restarted, 2 pods ("},
		{"cloneSetTemplate", "CloneSet", `"updateStrategy": {"type": "InPlaceIfPossible"}, `, "", "evict x-a-0, evict x-a-1", ": restarted, 2 pods ("},
		{"cloneSetTemplate", "CloneSet", `"updateStrategy": {"paused": true}, `, "", "", ": left as it is: it is paused: spec.updateStrategy.paused ("},
		{"cloneSetTemplate", "CloneSet", "", `, "updateStrategy": {"manualUpdate": {"partitions": {"a": 2}}}`, "", ": left as it is: spec.updateStrategy.manualUpdate.partitions keeps them ("},
	} {
		s := newShop(t)
		s.united(tt.of, tt.kind, tt.subsets, tt.more)
		var template object
		s.patched = func(_ string, o object) {
			template = o["spec"].(object)["template"].(object)[tt.of].(object)["spec"].(object)["template"].(object)
			s.replace(s.new, tt.kind, "x-a")
		}
		s.evict = func(pod string) int {
			delete(s.objects, pod)
			s.pod(s.new, tt.kind, "x-a")
			return http.StatusCreated
		}
		says, err := s.run(Options{})
		if wrote := strings.Join(s.wrote(), ", "); wrote != tt.wrote || !strings.Contains(says, "UnitedDeployment.apps.kruise.io/x"+tt.says) || (err == nil) != (tt.wrote != "") {
			t.Errorf("%s %s%s: %q, %v\n%s", tt.of, tt.subsets, tt.more, wrote, err, says)
		}
		if tt.wrote == "patch x" && template["metadata"].(object)["annotations"].(object)[restartedAt] == nil {
			t.Errorf("%s: %v", tt.of, template)
		}
	}
	s := newShop(t)
	s.united("cloneSetTemplate", "CloneSet", "", "")
	s.new = settingsWith(t, `{"proxy": {"image": "proxy:v1", "logLevel": "debug"}}`)
	if says, err := s.run(Options{DryRun: true}); err != nil || !strings.Contains(says, ": 2 of 2 pods: istio-proxy.args\n") {
		t.Errorf("%v: a pod's own maker is a difference:\n%s", err, says)
	}
}

// TestRestartTime: it is the API server's clock, not this machine's, and nothing else is changed.
func TestRestartTime(t *testing.T) {
	for kind, field := range map[string]string{"Deployment": `"kubectl.kubernetes.io/restartedAt":"2026-01-02T03:\d\d:\d\dZ"`, "Rollout": `"restartAt":"2026-01-02T03:\d\d:\d\dZ"`} {
		s := newShop(t)
		s.workload(kind, "x", 1, "")
		before, _ := json.Marshal(s.objects[kinds[kind][0]+"x"])
		var after []byte
		s.patched = func(_ string, o object) {
			after, _ = json.Marshal(o)
			o["status"].(object)["restartedAt"] = o["spec"].(object)["restartAt"]
			s.replace(s.new, kind, "x")
		}
		if says, err := s.run(Options{}); err != nil {
			t.Errorf("%v\n%s", err, says)
		}
		written := regexp.MustCompile(field).Find(after)
		if written == nil || len(after) > len(before)+len(written)+len(`"annotations":{},`) {
			t.Errorf("%s\nbecame\n%s", before, after)
		}
	}
}

// TestReasons: what is said of pods that differ in other ways than their image.
func TestReasons(t *testing.T) {
	for _, tt := range []struct{ spec, pod, want string }{
		{`{"proxy": {"image": "proxy:v1", "logLevel": "debug"}}`, "", "istio-proxy.args"},
		{`{"proxy": {"image": "proxy:v1", "env": {"A": "b"}}, "init": {"resources": {"limits": {"cpu": "7"}}}}`, "", "istio-proxy.env[A]"},
		{`{"proxy": {"image": "proxy:v1"}, "injection": {"autoInjectByAnnotation": false}}`, "", "it is injected, and would not be (policy-off)"},
		{`{"proxy": {"image": "proxy:v1"}}`, `"sidecar.istio.io/status": "{\"revision\":\"default\"}"`, "another injector's, and would be ours (policy-on)"},
		{`{"proxy": {"image": "proxy:v1"}}`, `"a": "b"`, "it is not injected, and would be (policy-on)"},
		{`{}`, "", "a new pod would be refused: proxy.image is empty"},
	} {
		s := newShop(t)
		s.workload("Deployment", "x", 1, "")
		s.new = settingsWith(t, tt.spec)
		if tt.pod != "" {
			var annotations object
			_ = json.Unmarshal([]byte("{"+tt.pod+"}"), &annotations)
			s.objects[podPath+"x-0"]["metadata"].(object)["annotations"] = annotations
		}
		if says, err := s.run(Options{DryRun: true}); err != nil || !strings.Contains(says, tt.want) {
			t.Errorf("%s: %v\n%s", tt.spec, err, says)
		}
	}
}

// TestTroubles: what does not come to its end is said, and nothing else is begun where the next workload would have the same.
func TestTroubles(t *testing.T) {
	for _, tt := range []struct {
		name    string
		patched func(s *shop, path string, o object)
		want    string
		begins  bool // the other workload
	}{
		{"reverted", func(s *shop, _ string, o object) {
			o["metadata"].(object)["managedFields"] = []any{object{"manager": "some-operator", "time": "2026-01-02T03:04:06Z"}}
			o["metadata"].(object)["ownerReferences"] = []any{object{"kind": "Knative", "name": "k"}}
			delete(o["spec"].(object)["template"].(object)["metadata"].(object), "annotations")
		}, "Deployment/a: annotation kubectl.kubernetes.io/restartedAt of its template was taken back by some-operator (it is made by Knative/k)", true},
		{"no new pods", func(s *shop, _ string, o object) {
			o["status"].(object)["conditions"] = []any{object{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}}
		}, "Deployment/a: 0 of 1 pods are new, and nothing has gone on for 2s: exceeded quota", false},
		{"new pods are not ready", func(s *shop, _ string, o object) {
			pod := s.objects[podPath+s.pod(s.new, "Deployment", "a")]
			pod["status"] = object{"phase": "Pending", "containerStatuses": []any{object{"name": "istio-proxy", "state": object{"waiting": object{"reason": "ImagePullBackOff"}}}}}
			o["status"].(object)["conditions"] = []any{object{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "it has timed out"}}
		}, "Deployment/a: 0 of 1 pods are new: it has timed out; pod a-2: istio-proxy ImagePullBackOff", false},
		{"new pods are as the old ones", func(s *shop, _ string, o object) { s.replace(s.old, "Deployment", "a") },
			"its new pod a-2 is not as it would be by the settings (image proxy:v1 -> proxy:v2)", false},
		{"deleted", func(s *shop, path string, _ object) { delete(s.objects, path) }, "it was deleted meanwhile", true},
	} {
		s := newShop(t)
		s.workload("Deployment", "a", 1, "")
		s.workload("Deployment", "b", 1, "")
		s.patched = func(path string, o object) {
			if filepath.Base(path) == "a" {
				tt.patched(s, path, o)
			} else {
				s.replace(s.new, "Deployment", "b")
			}
		}
		says, err := s.run(Options{Workloads: 1, Timeout: 2 * time.Second})
		if !strings.Contains(says, tt.want) || err == nil || !strings.Contains(err.Error(), "not restarted: Deployment/a") {
			t.Errorf("%s: %v\n%s", tt.name, err, says)
		}
		if begun := slices.Contains(s.wrote(), "patch b"); begun != tt.begins || begun == strings.Contains(err.Error(), "not begun, since new pods do not come: Deployment/b") {
			t.Errorf("%s: the other one is begun: %v: %v", tt.name, begun, err)
		}
	}
}

// TestBudget: an eviction that a PodDisruptionBudget forbids is tried again, and said once.
func TestBudget(t *testing.T) {
	s := newShop(t)
	s.workload("ReplicaSet", "x", 2, "")
	left := 3
	s.evict = func(pod string) int {
		if left--; left >= 0 {
			return http.StatusTooManyRequests
		}
		delete(s.objects, pod)
		s.pod(s.new, "ReplicaSet", "x")
		return http.StatusCreated
	}
	says, err := s.run(Options{})
	if err != nil || strings.Count(says, "held: ") != 1 || len(s.wrote()) != 5 {
		t.Errorf("%v, %v\n%s", err, s.wrote(), says)
	}
	s = newShop(t)
	s.workload("ReplicaSet", "x", 2, "")
	s.evict = func(string) int { return http.StatusTooManyRequests }
	if says, err := s.run(Options{Timeout: 100 * time.Millisecond}); err == nil || !strings.Contains(says, "ReplicaSet/x: pod x-0 could not be evicted for 100ms: Too Many Requests says the fake") {
		t.Errorf("%v\n%s", err, says)
	}
	s = newShop(t)
	s.workload("ReplicaSet", "x", 2, "")
	s.evict = func(string) int { return http.StatusForbidden }
	if says, err := s.run(Options{}); err == nil || !strings.Contains(says, "Forbidden") || len(s.wrote()) != 1 {
		t.Errorf("%v\n%s", err, says)
	}
}

// TestInterrupt: what is under way is watched, nothing new is begun, and the next run goes on without doing twice what was done.
func TestInterrupt(t *testing.T) {
	s := newShop(t)
	for _, name := range []string{"a", "b", "c"} {
		s.workload("Deployment", name, 1, "")
	}
	stop := make(chan struct{})
	s.patched = func(path string, o object) {
		if filepath.Base(path) == "a" {
			close(stop)
			time.AfterFunc(50*time.Millisecond, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.replace(s.new, "Deployment", "a")
			})
			return
		}
		s.replace(s.new, "Deployment", filepath.Base(path))
	}
	says, err := s.run(Options{Workloads: 1, Stop: stop})
	if err == nil || !strings.Contains(err.Error(), "not begun, interrupted: Deployment/b, Deployment/c; run it again to go on") || !strings.Contains(says, "Deployment/a: restarted") {
		t.Errorf("%v\n%s", err, says)
	}
	if says, err := s.run(Options{}); err != nil || strings.Join(slices.Sorted(slices.Values(s.wrote())), ", ") != "patch a, patch b, patch c" {
		t.Errorf("%v, %v\n%s", err, s.wrote(), says)
	}
}

// TestUnderWay: a workload that was told already to have new pods is not told again, unless what comes is wrong as well.
func TestUnderWay(t *testing.T) {
	for _, right := range []bool{true, false} {
		s := newShop(t)
		s.workload("Deployment", "x", 2, "")
		s.objects[kinds["Deployment"][0]+"x"]["status"].(object)["updatedReplicas"] = 1
		s.now = s.now.Add(time.Minute)
		newest := s.old
		if right {
			newest = s.new
		}
		s.pod(newest, "Deployment", "x")
		s.patched = func(_ string, o object) {
			o["status"].(object)["updatedReplicas"] = 2
			s.replace(s.new, "Deployment", "x")
		}
		time.AfterFunc(50*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if right {
				s.patched("", s.objects[kinds["Deployment"][0]+"x"])
			}
		})
		says, err := s.run(Options{})
		if err != nil || (len(s.wrote()) == 0) != right {
			t.Errorf("right %v: %v, %v\n%s", right, err, s.wrote(), says)
		}
	}
}

// TestKept: pods that a partition keeps stay, and are named.
func TestKept(t *testing.T) {
	s := newShop(t)
	s.workload("StatefulSet", "x", 3, `"updateStrategy": {"rollingUpdate": {"partition": 1}}`)
	s.patched = func(string, object) {
		for _, pod := range []string{"x-1", "x-2"} {
			delete(s.objects, podPath+pod)
			s.pod(s.new, "StatefulSet", "x")
		}
	}
	says, err := s.run(Options{})
	if err == nil || !strings.Contains(says, "StatefulSet/x: restarted but for 1 pod, which spec.updateStrategy.rollingUpdate.partition keeps") {
		t.Errorf("%v\n%s", err, says)
	}
}

// TestAll: what does not differ is restarted only with --all.
func TestAll(t *testing.T) {
	s := newShop(t)
	s.old = s.new
	s.workload("Deployment", "x", 1, "")
	s.patched = func(string, object) { s.replace(s.new, "Deployment", "x") }
	if says, err := s.run(Options{}); err != nil || len(s.wrote()) > 0 {
		t.Errorf("%v\n%s", err, says)
	}
	if says, err := s.run(Options{All: true}); err != nil || !strings.Contains(says, "Deployment/x: restarted, 1 pod (--all)") {
		t.Errorf("%v\n%s", err, says)
	}
}

// TestAilingBefore: a pod that was not ready before need not be afterwards, nor does it count what the controller said of an earlier template.
func TestAilingBefore(t *testing.T) {
	s := newShop(t)
	s.workload("Deployment", "x", 2, "")
	ail := func(pod string) { s.objects[podPath+pod]["status"] = object{"phase": "Running"} }
	ail("x-0")
	o := s.objects[kinds["Deployment"][0]+"x"]
	o["status"].(object)["conditions"] = []any{object{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "long ago"}}
	s.patched = func(_ string, o object) {
		o["metadata"].(object)["generation"] = 2
		time.AfterFunc(50*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.replace(s.new, "Deployment", "x")
			ail("x-2")
			delete(o["status"].(object), "conditions")
			o["status"].(object)["observedGeneration"] = 2
		})
	}
	if says, err := s.run(Options{}); err != nil || !strings.Contains(says, "Deployment/x: restarted, 2 pods") {
		t.Errorf("%v\n%s", err, says)
	}
}

// TestHostileNames: what a pod has in it does nothing to the terminal of who restarts it.
func TestHostileNames(t *testing.T) {
	s := newShop(t)
	s.workload("Deployment", "x", 1, "")
	for _, c := range s.objects[podPath+"x-0"]["spec"].(object)["containers"].([]any) {
		c.(object)["image"] = "proxy:v1\x1b[2J"
	}
	if says, err := s.run(Options{DryRun: true}); err != nil || strings.Contains(says, "\x1b") || !strings.Contains(says, "image proxy:v1?[2J -> proxy:v2") {
		t.Errorf("%v\n%q", err, says)
	}
}

// TestLiveLine: on a terminal one line changes, and none of it stays.
func TestLiveLine(t *testing.T) {
	s := newShop(t)
	s.workload("Deployment", strings.Repeat("long", 15), 1, "")
	s.patched = func(path string, _ object) {
		time.AfterFunc(100*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.replace(s.new, "Deployment", filepath.Base(path))
		})
	}
	says, err := s.run(Options{Live: true})
	if err != nil || !strings.Contains(says, "\r\x1b[K0 of 1 done; Deployment/long") {
		t.Errorf("%v\n%q", err, says)
	}
	for line := range strings.SplitSeq(says, "\r\x1b[K") {
		if n := len([]rune(line)); !strings.Contains(line, "\n") && n > liveWidth {
			t.Errorf("%d characters: %q", n, line)
		}
	}
}
