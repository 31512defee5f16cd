package profile

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// schema is what we read of an OpenAPI schema.
type schema struct {
	Description string            `json:"description"`
	Properties  map[string]schema `json:"properties"`
	Enum        []string          `json:"enum"`
}

// The CustomResourceDefinition is made of the types by make crd: it has their fields and no other, each with a description.
func TestCustomResourceDefinitionHasTheTypesFields(t *testing.T) {
	data, err := os.ReadFile("../../deploy/chart/crds/sidecarprofiles.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd struct {
		Spec struct {
			Group    string
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPIV3Schema schema `json:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(data, &crd); err != nil {
		t.Fatal(err)
	}
	if len(crd.Spec.Versions) != 1 || crd.Spec.Versions[0].Name != Version || crd.Spec.Group != Group {
		t.Fatalf("%s: %d versions", crd.Spec.Group, len(crd.Spec.Versions))
	}
	root := crd.Spec.Versions[0].Schema.OpenAPIV3Schema
	sameFields(t, "spec", reflect.TypeFor[Spec](), root.Properties["spec"])
	sameFields(t, "status", reflect.TypeFor[Status](), root.Properties["status"])
	for path, want := range map[string][]string{
		"preset": {string(PresetIstio), string(PresetASM)}, "proxy.native": {string(NativeAlways), string(NativeAuto), string(NativeNever)},
		"capture.mode": {string(None), string(Redirect), string(TProxy)}, "controlPlane.mode": {string(ModeFiles), string(ModeIstiod)},
		"hotUpgrade.standbyRequests": {string(StandbySame), string(StandbyResize)},
	} {
		at := root.Properties["spec"]
		for name := range strings.SplitSeq(path, ".") {
			at = at.Properties[name]
		}
		if !slices.Equal(slices.Sorted(slices.Values(at.Enum)), slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %q, want %q", path, at.Enum, want)
		}
	}
}

func sameFields(t *testing.T, path string, of reflect.Type, s schema) {
	t.Helper()
	known := map[string]bool{}
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		known[name] = true
		property, ok := s.Properties[name]
		if !ok || property.Description == "" {
			t.Errorf("%s.%s: not in the CustomResourceDefinition, or without a description: make crd", path, name)
		}
		if isOurs(f.Type) {
			sameFields(t, path+"."+name, f.Type.Elem(), property)
		}
	}
	for name := range s.Properties {
		if !known[name] {
			t.Errorf("%s.%s: in the CustomResourceDefinition, and no field of the type: make crd", path, name)
		}
	}
}
