package inject

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"understudy.mesh/pkg/profile"
)

// FuzzPatch holds that whatever the pod is, there is an error, or a patch that applies and leaves nothing to do.
func FuzzPatch(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txtar")
	for _, file := range files {
		pod, err := yaml.YAMLToJSON(archived(f, file)["pod.yaml"])
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pod, false)
		f.Add(inject(f, []byte(probedPod), Environment{}, layerOf(f, profile.SourceMesh, plainMesh)), true)
	}
	f.Add([]byte(`{"spec":{"containers":[{"name":"istio-proxy","env":[null,1,{"name":[]}],"volumeMounts":{},"lifecycle":1,"resources":[],"securityContext":{"runAsUser":"x"}}]}}`), true)
	meshes := map[bool]profile.Layer{false: layerOf(f, profile.SourceMesh, plainMesh), true: layerOf(f, profile.SourceMesh, otherMesh)}
	f.Fuzz(func(t *testing.T, pod []byte, other bool) {
		settings := func(pod []byte) *profile.Settings {
			var p struct {
				Metadata struct{ Annotations map[string]string }
			}
			_ = json.Unmarshal(pod, &p)
			own, _, err := profile.FromAnnotations(userAnnotations(p.Metadata.Annotations))
			if err != nil {
				return nil
			}
			return profile.Resolve(append(own, meshes[other])...)
		}
		s := settings(pod)
		if s == nil {
			return
		}
		env := Environment{Namespace: Namespace{Name: "shop"}}
		ops, _, err := patchOf(pod, s, env)
		if err != nil || ops == nil {
			return
		}
		patch, err := jsonpatch.DecodePatch(ops)
		if err != nil {
			t.Fatalf("%v: %s", err, ops)
		}
		injected, err := patch.Apply(pod)
		if err != nil {
			t.Fatalf("%v: %s", err, ops)
		}
		if s = settings(injected); s == nil {
			t.Fatalf("its own annotations are wrong: %s", injected)
		}
		again, _, err := patchOf(injected, s, env)
		if err != nil || again != nil {
			t.Fatalf("again: %v, %s", err, again)
		}
	})
}

// FuzzRead holds that of a pod is read what a decoder makes of its whole text.
func FuzzRead(f *testing.F) {
	f.Add([]byte(probedPod))
	f.Add(inject(f, []byte(probedPod), Environment{}, layerOf(f, profile.SourceMesh, plainMesh)))
	for _, seed := range []string{
		`{"kind":"Pod","metadata":{"name":"a","name":"b","Name":"c","managedFields":[{}],"labels":{"a":"b"}},"spec":{"new":{"a":[1]},"os":{"name":"linux","x":1},"containers":[{"name":"a","env":[{"name":"E"}]},null]}}`,
		`{"metadata":null,"metadata":{},"spec":{"containers":[{"name":1}]}}`, `{"spec":{"containers":{}}}`, `{"spec":{"c\u006fntainers":[{}]}}`, `{"spec":{"containers":[{"securityContext":{"seccompProfile":{"type":"x"},"runAsUser":1.0}}]}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		read, err := parsePod(raw)
		var whole podView
		wantErr := kjson.UnmarshalCaseSensitivePreserveInts(raw, &whole)
		if wantErr != nil {
			if want := fmt.Sprintf("read the pod: %v", wantErr); err == nil || err.Error() != want {
				t.Fatalf("%v, want %s", err, want)
			}
			return
		}
		if err != nil { // no containers
			return
		}
		if whole.raw, whole.hasMetadata = raw, whole.Metadata != nil; !whole.hasMetadata {
			whole.Metadata = &metadata{}
		}
		if !reflect.DeepEqual(read, &whole) {
			t.Fatalf("%+v, want %+v", read, &whole)
		}
	})
}
