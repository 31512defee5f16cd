package asmfilter

import (
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// manual is the spec of the ASM manual, in JSON.
const manual = `{
	"workload": {"kind": "Deployment", "labels": {"app": "details", "version": "v1"}},
	"filter": {
		"patchContext": "SIDECAR_INBOUND", "parameters": "{\"name\":\"hello\", \"value\": \"hello details\"}",
		"image": "acree-1-registry.cn-hangzhou.cr.aliyuncs.com/asm/asm-test:v0.1", "rootID": "my_root_id", "id": "details-v1-wasmfiltersample.default"
	}
}`

func read(t testing.TB, strategy, text string) (*Document, *FieldError) {
	t.Helper()
	var spec any
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return Read("default", "details-v1-wasmfiltersample", strategy, spec)
}

// TestManual: the manual's document becomes what is in testdata, with its parameters byte for byte.
func TestManual(t *testing.T) {
	d, wrong := read(t, "", manual)
	if wrong != nil {
		t.Fatal(wrong)
	}
	got, err := json.MarshalIndent(d.Manifest(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/manual.json"
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != string(got)+"\n" {
		t.Errorf("%v, %s", err, got)
	}
}

func TestDefaults(t *testing.T) {
	d, wrong := read(t, "", `{"workload": {"kind": "Deployment", "labels": {"a": "b"}}, "filter": {"image": "oci://a.example/b"}}`)
	if wrong != nil {
		t.Fatal(wrong)
	}
	got, err := json.Marshal(d.EnvoyFilter())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"context":"SIDECAR_INBOUND"`, `"name":"details-v1-wasmfiltersample.default","root_id":""`, `"uri":"oci://a.example/b"`, `"rules":{}`, "wasm-default-deny"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s has no %s", got, want)
		}
	}
	if strings.Contains(string(got), "configuration") || strings.Contains(string(got), "failure_policy") {
		t.Errorf("%s", got)
	}
}

func TestFailStrategy(t *testing.T) {
	for strategy, wants := range map[string][]string{
		"FAIL_CLOSE":  {"wasm-default-deny", `"rules":{}`},
		"FAIL_RELOAD": {"wasm-default-deny", `"failure_policy":"FAIL_RELOAD"`},
		"FAIL_OPEN":   {"wasm-default-allow", `"failure_policy":"FAIL_OPEN"`},
	} {
		d, wrong := read(t, strategy, manual)
		if wrong != nil {
			t.Fatal(wrong)
		}
		got, err := json.Marshal(d.EnvoyFilter())
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range wants {
			if !strings.Contains(string(got), want) {
				t.Errorf("%s: %s has no %s", strategy, got, want)
			}
		}
		if strategy == "FAIL_OPEN" && strings.Contains(string(got), `"rules":`) {
			t.Errorf("%s", got)
		}
	}
	if _, wrong := read(t, "OPEN", manual); wrong == nil || wrong.Field != "metadata.annotations[understudy.mesh/fail-strategy]" {
		t.Errorf("%v", wrong)
	}
}

func TestRefusals(t *testing.T) {
	const workload, filter = `"workload": {"kind": "Deployment", "labels": {"a": "b"}}`, `"filter": {"image": "a"}`
	for text, want := range map[string]string{
		`null`:                            "spec: should be an object with filter, workload",
		`{}`:                              "spec.workload.kind: is missing",
		`{"workload": 1, ` + filter + `}`: "spec.workload: is a number, should be an object",
		`{` + workload + `, ` + filter + `, "more": 1}`:                                           "spec.more: unknown field; known are filter, workload",
		`{` + workload + `}`:                                                                      "spec.filter.image: is missing",
		`{` + workload + `, "filter": {"img": "a"}}`:                                              "spec.filter.img: unknown field",
		`{` + workload + `, "filter": {}}`:                                                        "spec.filter.image: is missing",
		`{` + workload + `, "filter": {"image": ["a"]}}`:                                          "spec.filter.image: is a list, should be a string",
		`{` + workload + `, "filter": {"image": "https://a/b"}}`:                                  "spec.filter.image: is \"https://a/b\", should be the name of an image",
		`{` + workload + `, "filter": {"image": "a", "parameters": {"a": 1}}}`:                    "spec.filter.parameters: is an object, should be a string: put it in quotes",
		`{` + workload + `, "filter": {"image": "a", "patchContext": "SIDECAR INBOUND"}}`:         "spec.filter.patchContext: is \"SIDECAR INBOUND\", should be one of SIDECAR_INBOUND",
		`{` + workload + `, "filter": {"image": "a", "id": "` + strings.Repeat("a", 1025) + `"}}`: "spec.filter.id: has 1025 bytes",
		`{"workload": {"labels": {"a": "b"}}, ` + filter + `}`:                                    "spec.workload.kind: is missing",
		`{"workload": {"kind": "Deployment"}, ` + filter + `}`:                                    "spec.workload.labels: is missing",
		`{"workload": {"kind": "Deployment", "labels": {}}, ` + filter + `}`:                      "spec.workload.labels: is missing",
		`{"workload": {"kind": "Deployment", "labels": {"a": 1}}, ` + filter + `}`:                "spec.workload.labels.a: is a number, should be a string",
		`{"workload": {"kind": "Deployment", "labels": null}, ` + filter + `}`:                    "spec.workload.labels: is null, should be an object of strings",
		`{"workload": {"kind": true, "labels": {"a": "b"}}, ` + filter + `}`:                      "spec.workload.kind: is a boolean",
	} {
		if d, wrong := read(t, "", text); wrong == nil || !strings.HasPrefix(wrong.Error(), want) {
			t.Errorf("%s: %+v, %v; want %s", text, d, wrong, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("", manual)
	f.Add("FAIL_OPEN", `{"workload": {"kind": "a", "labels": {"a": "b"}}, "filter": {"image": "c"}}`)
	f.Fuzz(func(t *testing.T, strategy, text string) {
		var spec any
		if json.Unmarshal([]byte(text), &spec) != nil {
			return
		}
		d, wrong := Read("a", "b", strategy, spec)
		if wrong != nil {
			return
		}
		if _, err := json.Marshal(d.Manifest()); err != nil || len(d.labels) == 0 {
			t.Errorf("%+v, %v", d, err)
		}
	})
}
