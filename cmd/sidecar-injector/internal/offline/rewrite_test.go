package offline

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/inject"
	"understudy.mesh/pkg/profile"
)

// patchOf is the patch of a workload with the built-in settings.
func patchOf(w Workload) ([]byte, error) {
	s, _, err := inject.Settings(w.Pod, profile.NewBase(profile.Layer{Source: profile.SourceMesh, Spec: &profile.Spec{Proxy: &profile.Proxy{Image: new("p")}}}))
	if err != nil {
		return nil, err
	}
	ops, _, err := w.Patch(s, inject.Namespace{Name: "shop"}, false)
	return ops, err
}

func rewrite(t testing.TB, text string) (string, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "app.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := Rewrite(file, nil, patchOf)
	return string(out), err
}

const deployment = `# of the team
apiVersion: apps/v1
kind: Deployment
metadata:
  name: sleep # its name
spec:
  template:
    metadata:
      labels: {app: sleep}
    spec:
      # all of it
      containers:
      # the application
      - name: sleep
        image: "curl" # pinned
        env:
        - {name: "NO", value: 'on'}
        command: ["/bin/sh", -c, |
          one
          two
          ]
`

// samples are documents, each of which must come out as the patches have it, in order and with its comments.
var samples = []string{
	strings.Replace(deployment, "command: [\"/bin/sh\", -c, |\n          one\n          two\n          ]", "args:\n        - |\n          one\n          two", 1),
	"apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: &l {app: a}, annotations: *l}\nspec:\n  containers:\n    - &c {name: a, image: i, env: [{name: A, value: yes please}]}\n    - <<: *c\n      name: b\n",
	"apiVersion: v1\nkind: List\nitems:\n- kind: Service\n  spec: {ports: [{port: 80}]} # kept\n- apiVersion: apps/v1\n  kind: DaemonSet\n  metadata: {name: d}\n  spec:\n    template:\n      spec:\n        containers: [{name: a, image: i}]\n- kind: Pod\n  metadata: {name: p}\n  spec: {containers: [{name: a, image: i}]}\n",
	"apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec:\n    jobTemplate:\n        spec:\n            template:\n                spec: {containers: [{name: a, image: i, livenessProbe: {tcpSocket: {port: 80}}}]}\n",
	`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j","annotations":{"a":"true","b":"0x10","c":"a: b"}},"spec":{"containers":[{"name":"a","image":"i","env":[{"name":"N","value":"012"}]}]}}`,
	"apiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: crlf\r\nspec:\r\n  containers:\r\n  - name: a # c\r\n    image: i\r\n",
	"kind: Pod\nmetadata: {labels: {app: \"on\", version: 'yes'}}\nspec:\n  containers:\n  - {name: a, livenessProbe: &p {httpGet: {path: /, port: 80}}}\n  - {name: b, livenessProbe: *p}\n",
	"kind: Pod\nmetadata: {labels: {app: a}}\nspec:\n  containers:\n  - {name: a, image: i, resources: {limits, requests: }}\n",
	"kind: Job\nspec: {template: {metadata: {labels: , annotations: {}}, spec: {containers: [{name: a, image: i}]}}}\n",
}

func TestRewrite(t *testing.T) {
	for _, sample := range samples {
		out, err := rewrite(t, sample)
		if err != nil {
			t.Errorf("%v\n%s", err, sample)
			continue
		}
		if out == sample {
			t.Errorf("nothing was injected:\n%s", sample)
		}
		mustBePatched(t, sample, out)
		for line := range strings.Lines(sample) {
			if _, comment, ok := strings.Cut(line, "# "); ok && !strings.Contains(out, "# "+strings.TrimSpace(comment)) {
				t.Errorf("the comment %q is lost:\n%s", comment, out)
			}
		}
		if again, err := rewrite(t, out); again != out || err != nil {
			t.Errorf("a second time: %v\n%s\nwas\n%s", err, again, out)
		}
	}
}

// mustBePatched compares a document with what comes of its JSON by a library for JSON patches.
func mustBePatched(t *testing.T, before, after string) {
	t.Helper()
	was, err := yaml.YAMLToJSON([]byte(before))
	if err != nil {
		t.Fatal(err)
	}
	found, err := document{text: []byte(before)}.workloads()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range found {
		ops, err := patchOf(w)
		if err != nil {
			t.Fatal(err)
		}
		var list []map[string]any
		if err := json.Unmarshal(ops, &list); err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			for _, field := range []string{"path", "from"} {
				if at, ok := o[field].(string); ok {
					o[field] = w.at + at
				}
			}
		}
		if ops, err = json.Marshal(list); err != nil {
			t.Fatal(err)
		}
		patch, err := jsonpatch.DecodePatch(ops)
		if err == nil {
			was, err = patch.Apply(was)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, ops)
		}
	}
	is, err := yaml.YAMLToJSONStrict([]byte(after))
	if err != nil {
		t.Fatalf("%v\n%s", err, after)
	}
	var want, got any
	if json.Unmarshal(was, &want) != nil || json.Unmarshal(is, &got) != nil || !cmp.Equal(want, got) {
		t.Errorf("%s\n%s", cmp.Diff(want, got), before)
	}
}

// TestRewriteKeepsBytes has documents that nothing is done to among one that is injected.
func TestRewriteKeepsBytes(t *testing.T) {
	const before, after = "# nothing\n\n---   # comment\nkind:   Service\nspec: {a:   b}\n...\n---\n\n--- {kind: ExternalSecret, spec: {template: {x: y}}}\n--- \n", "---\nfoo:   [ bar ]\n# the end"
	const pod = "---\nkind: Pod\nspec:\n  containers:\n  - name: a\n"
	out, err := rewrite(t, before+pod+after)
	if err != nil || !strings.HasPrefix(out, before) || !strings.HasSuffix(out, after) || len(out) < len(before+pod+after)+1000 {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err = rewrite(t, before+after); out != before+after || err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	inline := "--- {kind: Pod, metadata: {name: a}, spec: {containers: [{name: a}]}}\n"
	if out, err = rewrite(t, inline); err != nil || !strings.HasPrefix(out, "---") {
		t.Errorf("%v\n%s", err, out)
	}
	mustBePatched(t, inline, out)
}

// TestRewriteRefuses has one mistake each; there is no output, and the error names the place.
func TestRewriteRefuses(t *testing.T) {
	const good = "kind: Pod\nmetadata: {name: good}\nspec: {containers: [{name: a}]}\n---\n"
	for bad, want := range map[string]string{
		"kind: Pod\nmetadata: {labels: {a: b, a: c}}\n": "document 2: want YAML: line 6: mapping key \"a\" already defined at line 6",
		"kind: Pod\n  x: [":                             "document 2: ",
		"kind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: istio-init}]}\n":                                        `document 2: Pod "bad": `,
		"kind: Deployment\nmetadata: {name: d}\nspec: {template: {spec: {containers: [{name: 1}]}}}":                          `document 2: Deployment "d": json: `,
		"kind: Pod\nmetadata: {name: v}\nspec: {volumes: [{name: istio-data, hostPath: {path: /}}], containers: [{name: a}]}": `document 2: Pod "v": volume "istio-data"`,
	} {
		if out, err := rewrite(t, good+bad); out != "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s\n%s", bad, err, want, out)
		}
	}
	bomb := "kind: Pod\nspec: {containers: [{name: a}]}\na: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"
	if out, err := rewrite(t, bomb); err == nil || out != "" {
		t.Errorf("a bomb of aliases: %d bytes", len(out))
	}
}

// FuzzRewrite holds that whatever a file is, there is an error, or what comes out is stable and says what the patches say.
func FuzzRewrite(f *testing.F) {
	for _, sample := range samples {
		f.Add(sample)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := rewrite(t, text)
		if err != nil {
			return
		}
		if again, err := rewrite(t, out); err != nil || again != out {
			t.Fatalf("a second time: %v\n%q\nwas\n%q", err, again, out)
		}
		if len(split("", []byte(text))) == 1 && out != text {
			mustBePatched(t, text, out)
		}
	})
}
