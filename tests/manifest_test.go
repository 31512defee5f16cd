package tests

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"istio.io/api/networking/v1alpha3"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/asmfilter"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/wasmplugin"
	"understudy.mesh/pkg/profile"
)

// manifest is as much of a ConfigMap, Pod or Istio resource as is looked at.
type manifest struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Data       map[string]string `json:"data"`
	Spec       json.RawMessage   `json:"spec"`

	text string
}

type podSpec struct {
	InitContainers, Containers []struct {
		Name, Image   string
		Args, Command []string
		Lifecycle     struct {
			PostStart struct {
				Exec struct{ Command []string }
			}
		}
		VolumeMounts []struct{ Name, MountPath string }
	}
	Volumes []struct{ Name string }
}

// manifests is every document of every YAML block.
func manifests(t *testing.T, blocks []block) map[string]manifest {
	t.Helper()
	found := make(map[string]manifest)
	for _, b := range blocks {
		if b.language != "yaml" {
			continue
		}
		for i, text := range strings.Split(b.text, "\n---\n") {
			var m manifest
			where := fmt.Sprintf("%s, document %d", b.where(), i+1)
			if err := yaml.Unmarshal([]byte(text), &m); err != nil {
				t.Errorf("%s: %v", where, err)
				continue
			}
			m.text = text
			found[where] = m
		}
	}
	return found
}

func TestManifestsAreWhatTheyClaim(t *testing.T) {
	inBothLanguages(t, 2, "manifests", func(document string) int {
		found := manifests(t, codeBlocks(t, document))
		if len(found) == 0 && strings.HasPrefix(document, "README") {
			t.Errorf("%s: no manifest", document)
		}
		for where, m := range found {
			switch kind := m.APIVersion + " " + m.Kind; {
			case kind == "v1 ConfigMap":
				for name, text := range m.Data {
					checkServiceEntries(t, where+", "+name, text)
				}
			case kind == "v1 Pod":
				checkPod(t, where, m)
			case kind == profile.Group+"/"+profile.Version+" "+profile.Kind:
				if p, err := profile.Decode([]byte(m.text)); err != nil {
					t.Errorf("%s: %v", where, err)
				} else if err := p.Validate(p.Namespace); err != nil {
					t.Errorf("%s: %v", where, err)
				}
			case kind == "batch/v1 Job":
				checkMounts(t, where, podOf(t, where, m))
			case kind == wasmplugin.APIVersion+" "+wasmplugin.Kind:
				if _, err := wasmplugin.Read([]byte(m.text), "default"); err != nil {
					t.Errorf("%s: %v", where, err)
				}
			case kind == "rbac.authorization.k8s.io/v1 ClusterRole": // that it is enough is for the tests with an API server
				var role rbacv1.ClusterRole
				if err := yaml.UnmarshalStrict([]byte(m.text), &role); err != nil || len(role.Rules) == 0 {
					t.Errorf("%s: %v: %+v", where, err, role)
				}
			case kind == asmfilter.APIVersion+" "+asmfilter.Kind:
				if _, err := mesh.ReadDeployments([]byte(m.text), "default"); err != nil {
					t.Errorf("%s: %v", where, err)
				}
			case strings.HasPrefix(m.APIVersion, "networking.istio.io/"):
				checkServiceEntries(t, where, m.text)
			default:
				t.Errorf("%s: %s: say here how such a one is checked", where, kind)
			}
		}
		return len(found)
	})
}

// TestAlertsInPapers wants of each alert what somebody who is woken by it needs, and a row that says what to do, in both languages.
// That they find what they ask for, and fire, is for the tests with a Prometheus (tests/e2e).
func TestAlertsInPapers(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repoRoot(t), "deploy", "monitoring", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var rule struct {
		Spec struct {
			Groups []struct {
				Rules []struct {
					Alert, Expr         string
					Labels, Annotations map[string]string
				}
			}
		}
	}
	if err := yaml.Unmarshal(text, &rule); err != nil || len(rule.Spec.Groups) != 1 {
		t.Fatalf("no group of rules: %v", err)
	}
	var want []string
	for _, r := range rule.Spec.Groups[0].Rules {
		if want = append(want, r.Alert); r.Expr == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" {
			t.Errorf("alert %+v: want name, expression, severity and summary", r)
		}
	}
	row := regexp.MustCompile("(?m)^\\| `([A-Z]\\w+)` \\|")
	for _, page := range []string{"operate.md", "operate.zh.md"} {
		text, err := os.ReadFile(filepath.Join(repoRoot(t), "docs", page))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range row.FindAllStringSubmatch(string(text), -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(want, got) {
			t.Errorf("%s explains %q, want %q", page, got, want)
		}
	}
}

func TestDemoConfigurationIsValid(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(repoRoot(t), "demo", "*", "*.yaml"))
	if err != nil || len(files) < 4 {
		t.Fatalf("demo/*/*.yaml: %q, %v", files, err)
	}
	for _, file := range files {
		if filepath.Base(file) == "broken.yaml" {
			continue // it is
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		checkServiceEntries(t, file, string(text))
	}
}

// checkServiceEntries reads every document as istio.io/api has it, where an unknown field is an error, and as the agent does.
func checkServiceEntries(t *testing.T, where, text string) {
	t.Helper()
	checkInForce(t, where, text)
	for _, document := range strings.Split(text, "\n---\n") {
		var m manifest
		if err := yaml.Unmarshal([]byte(document), &m); err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		checkIstioResource(t, where, m)
	}
}

// checkInForce wants all that the documents say to be in force in an agent, without a warning.
func checkInForce(t *testing.T, where, text string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mesh.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := mesh.NewSource(dir, mesh.Options{
		Namespace: "default", IPv4: true, IPv6: true, InboundPort: 15006, OutboundPort: 15001, ConnectTimeout: 10 * time.Second, AutoAllocate: true,
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := source.Load(); err != nil {
		t.Errorf("%s: %v", where, err)
	}
	for _, d := range source.Report().Documents {
		if d.Status != "ok" {
			t.Errorf("%s: %s %s is %s: %s: %s", where, d.Kind, d.Name, d.Status, d.Field, d.Reason)
		}
	}
}

func checkIstioResource(t *testing.T, where string, m manifest) {
	t.Helper()
	var spec proto.Message
	switch m.Kind {
	case "ServiceEntry":
		spec = &v1alpha3.ServiceEntry{}
	case "WorkloadEntry":
		spec = &v1alpha3.WorkloadEntry{}
	case "EnvoyFilter":
		spec = &v1alpha3.EnvoyFilter{}
	}
	version, istio := strings.CutPrefix(m.APIVersion, "networking.istio.io/")
	if spec == nil || !istio || !slices.Contains([]string{"v1alpha3", "v1beta1", "v1"}, version) {
		t.Errorf("%s: %s %s is not what this release reads", where, m.APIVersion, m.Kind)
		return
	}
	if err := protojson.Unmarshal(m.Spec, spec); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// checkPod looks at what a reader would stumble over: a mount of no volume, an image that no stage makes.
func checkPod(t *testing.T, where string, m manifest) {
	t.Helper()
	spec := podOf(t, where, m)
	checkMounts(t, where, spec)
	if len(spec.Containers) == 0 || spec.Containers[0].Name != "istio-proxy" {
		t.Errorf("%s: istio-proxy is not the first container, so nothing waits for it", where)
	}
}

// podOf is what a Pod, or the template of a Job, says of the pod.
func podOf(t *testing.T, where string, m manifest) (spec podSpec) {
	t.Helper()
	var job struct{ Template struct{ Spec podSpec } }
	err := json.Unmarshal(m.Spec, &spec)
	if m.Kind == "Job" {
		err = json.Unmarshal(m.Spec, &job)
		spec = job.Template.Spec
	}
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	return spec
}

func checkMounts(t *testing.T, where string, spec podSpec) {
	t.Helper()
	volumes := make(map[string]bool)
	for _, v := range spec.Volumes {
		volumes[v.Name] = true
	}
	for _, c := range append(spec.InitContainers, spec.Containers...) {
		for _, mount := range c.VolumeMounts {
			if !volumes[mount.Name] {
				t.Errorf("%s: container %s mounts %s, which is no volume", where, c.Name, mount.Name)
			}
		}
	}
}

// podCommands is the agent's command lines in the manifests: arguments of its image, and hooks.
func podCommands(t *testing.T) []agentCommand {
	t.Helper()
	var commands []agentCommand
	for where, m := range manifests(t, allBlocks(t, "yaml")) {
		if m.Kind != "Pod" && m.Kind != "Job" {
			continue
		}
		spec := podOf(t, where, m)
		for _, c := range append(spec.InitContainers, spec.Containers...) {
			if strings.HasPrefix(c.Image, "understudy/proxy") {
				commands = append(commands, agentCommand{where + ", " + c.Name, c.Args})
			}
			if hook := c.Lifecycle.PostStart.Exec.Command; len(hook) > 0 {
				commands = append(commands, agentCommand{where + ", " + c.Name + " postStart", hook[1:]})
			}
		}
	}
	return commands
}
