package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

var update = flag.Bool("update", false, "write testdata again")

// layersOf reads a SidecarProfile's spec of each of the given texts.
func layerOf(t testing.TB, source, text string) profile.Layer {
	t.Helper()
	var s profile.Spec
	if err := yaml.UnmarshalStrict([]byte(text), &s); err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return profile.Layer{Source: source, Spec: &s}
}

// settingsOf are what a pod's annotations and a mesh's profile come to.
func settingsOf(t testing.TB, pod []byte, layers ...profile.Layer) *profile.Settings {
	t.Helper()
	var p struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := json.Unmarshal(pod, &p); err != nil {
		t.Fatal(err)
	}
	own, _, err := profile.FromAnnotations(userAnnotations(p.Metadata.Annotations))
	if err != nil {
		t.Fatal(err)
	}
	return profile.Resolve(append(own, layers...)...)
}

// patchOf reads a pod and makes its patch.
func patchOf(raw []byte, s *profile.Settings, env Environment) (ops []byte, warnings []string, err error) {
	pod, err := Read(raw)
	if err != nil {
		return nil, nil, err
	}
	return pod.Patch(s, env)
}

// apply applies a patch as the API server does.
func apply(t testing.TB, pod, ops []byte) []byte {
	t.Helper()
	if ops == nil {
		return pod
	}
	patch, err := jsonpatch.DecodePatch(ops)
	if err != nil {
		t.Fatalf("%v: %s", err, ops)
	}
	out, err := patch.Apply(pod)
	if err != nil {
		t.Fatalf("%v\n%s", err, ops)
	}
	return out
}

// TestPatch compares with what is in testdata: each file has a pod (pod.yaml), maybe a mesh's and a namespace's settings (mesh.yaml,
// namespace.yaml), the environment (environment.yaml), and what comes of them: the error, or the pod and the warnings. Of the pod only
// that is there in which it differs from the one of plain.txtar: see [parts].
func TestPatch(t *testing.T) {
	plain := parts(t, patched(t, "testdata/plain.txtar").pod)
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			base := plain
			if file == "testdata/plain.txtar" {
				base = nil
			}
			got := patched(t, file).golden(t, base)
			archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return strings.HasPrefix(f.Name, "out") })
			want, err := os.ReadFile(file)
			archive.Files = append(archive.Files, got...)
			if text := txtar.Format(archive); err != nil || !bytes.Equal(text, want) {
				if *update {
					err = os.WriteFile(file, text, 0o666)
				}
				t.Logf("%v: (-update writes it)\n%s", err, diff.Diff("want", want, "got", text))
				if !*update {
					t.Fail()
				}
			}
		})
	}
}

// outcome is what comes of a case.
type outcome struct {
	pod      []byte
	warnings []string
	err      error
}

// patched carries out a case. A pod that is injected must stay as it is, whoever asks again.
func patched(t *testing.T, file string) outcome {
	t.Helper()
	in := archived(t, file)
	pod, err := yaml.YAMLToJSON(in["pod.yaml"])
	if err != nil {
		t.Fatal(err)
	}
	env := Environment{Namespace: Namespace{Name: "shop"}}
	if err := yaml.UnmarshalStrict(in["environment.yaml"], &env); err != nil {
		t.Fatal(err)
	}
	layers := []profile.Layer{layerOf(t, "namespace shop", string(in["namespace.yaml"])), layerOf(t, profile.SourceMesh, string(in["mesh.yaml"]))}
	ops, warnings, err := patchOf(pod, settingsOf(t, pod, layers...), env)
	if err != nil {
		return outcome{err: err}
	}
	injected := apply(t, pod, ops)
	again, _, err := patchOf(injected, settingsOf(t, injected, layers...), env)
	if err != nil || again != nil {
		t.Errorf("%s: injected again: %v, %s", file, err, again)
	}
	return outcome{injected, warnings, nil}
}

// archived are the files of a case.
func archived(t testing.TB, file string) map[string][]byte {
	t.Helper()
	archive, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string][]byte{"mesh.yaml": []byte(plainMesh)}
	for _, f := range archive.Files {
		in[f.Name] = f.Data
	}
	return in
}

// part is one of ours of an injected pod, or the pod without them.
type part struct{ name, text string }

var hashes = regexp.MustCompile(`("understudy.mesh/hash":)"\w+"`)

// parts takes a pod apart: the containers of the proxy and the rest, in which their names stand for them.
func parts(t *testing.T, pod []byte) []part {
	t.Helper()
	var whole map[string]any
	if err := json.Unmarshal(pod, &whole); err != nil {
		t.Fatal(err)
	}
	text := func(name string, v any) part {
		out, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return part{name, hashes.ReplaceAllString(string(out), "$1...")}
	}
	var ours []part
	of := whole["spec"].(map[string]any)
	for _, list := range []string{initContainers, containers} {
		all, _ := of[list].([]any)
		for i, c := range all {
			if name := c.(map[string]any)["name"].(string); isOurs(name) {
				ours = append(ours, text(name, c))
				all[i] = "CONTAINER " + name
			}
		}
	}
	return append(ours, text("pod", whole))
}

// golden is an outcome as files: each part as the difference from that of plain, the second slot as that from the first.
func (o outcome) golden(t *testing.T, plain []part) (files []txtar.File) {
	if o.err != nil {
		return []txtar.File{{Name: "out.error", Data: []byte(o.err.Error() + "\n")}}
	}
	if len(o.warnings) > 0 {
		files = append(files, txtar.File{Name: "out.warnings", Data: []byte(strings.Join(o.warnings, "\n") + "\n")})
	}
	own := parts(t, o.pod)
	for _, p := range own {
		base, from := plain, p.name
		switch p.name {
		case contract.SecondContainer:
			base, from = own, contract.ProxyContainer
		case validationName:
			from = initName
		}
		i := slices.IndexFunc(base, func(b part) bool { return b.name == from })
		if i < 0 {
			files = append(files, txtar.File{Name: "out." + p.name, Data: []byte(p.text)})
		} else if d := diff.Diff(from, []byte(base[i].text), p.name, []byte(p.text)); d != nil {
			files = append(files, txtar.File{Name: "out." + p.name + ".diff", Data: d})
		}
	}
	return files
}
