package tests

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"understudy.mesh/pkg/profile"
)

// asmRow is a line of the tables of docs/asm.md: whose profile, and the merge patch.
var asmRow = regexp.MustCompile("(?m)^\\|.*\\| (mesh|namespace|网格|命名空间) \\| `(\\{.*\\})` \\|$")

// Each patch for a field of ASM's console is a right profile, and says something; those of chapter 8 together are what the
// manual's output has.
func TestPatchesForTheConsolesFields(t *testing.T) {
	english, patches := asmPatches(t, "docs/asm.md"), map[string]map[string]any{}
	if chinese := asmPatches(t, "docs/asm.zh.md"); !slices.Equal(english, chinese) {
		t.Errorf("the patches differ between docs/asm.md and its twin:\n%q\n%q", english, chinese)
	}
	for _, row := range english {
		whose, text, _ := strings.Cut(row, " ")
		var patch map[string]any
		if err := json.Unmarshal([]byte(text), &patch); err != nil {
			t.Errorf("%s: %v", row, err)
			continue
		}
		if patches[whose] == nil {
			patches[whose] = map[string]any{}
		}
		mergePatch(patches[whose], patch)
		spec := asmSpec(t, whose, patch)
		settings := profile.Resolve(profile.Layer{Source: "the patch", Spec: spec})
		if !slices.ContainsFunc(settings.Rows(), func(r profile.Row) bool { return strings.HasPrefix(r.Source, "the patch") }) {
			t.Errorf("%s: it sets nothing", row)
		}
	}
	mergePatch(patches["mesh"], map[string]any{"spec": map[string]any{"preset": "asm", "capture": map[string]any{"excludeOutboundIPRanges": []any{"192.168.0.1/32"}}}})
	s := profile.Resolve(profile.Layer{Source: "namespace shop", Spec: asmSpec(t, "namespace", patches["namespace"])},
		profile.Layer{Source: profile.SourceMesh, Spec: asmSpec(t, "mesh", patches["mesh"])})
	text, err := json.Marshal(s.Capture)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"mode":"REDIRECT","includeOutboundIPRanges":["172.1.1.2/32"],"excludeOutboundIPRanges":["192.168.0.1/32","172.1.1.1/32"],` +
		`"includeInboundPorts":["*"],"excludeInboundPorts":[15090,15021,15081,9191,7013,7014],"includeOutboundPorts":[7015,7016],"excludeOutboundPorts":[7011,7012],` +
		`"excludeInterfaces":[],"rerouteVirtualInterfaces":[]}`
	if string(text) != want {
		t.Errorf("chapter 8 is\n%s, want\n%s", text, want)
	}
}

// asmPatches are the rows of a page's tables, each as whose profile and patch, in English.
func asmPatches(t *testing.T, page string) (rows []string) {
	t.Helper()
	words := strings.NewReplacer("网格", "mesh", "命名空间", "namespace")
	for _, m := range asmRow.FindAllStringSubmatch(readRepoFile(t, page), -1) {
		rows = append(rows, words.Replace(m[1])+" "+m[2])
	}
	if len(rows) < 20 {
		t.Errorf("%s: only %d patches found", page, len(rows))
	}
	return rows
}

// asmSpec is the spec of a profile to which a patch was applied.
func asmSpec(t *testing.T, whose string, patch map[string]any) *profile.Spec {
	t.Helper()
	namespace := map[string]string{"mesh": "understudy-system", "namespace": "shop"}[whose]
	object := map[string]any{"apiVersion": profile.Group + "/" + profile.Version, "kind": profile.Kind,
		"metadata": map[string]any{"name": profile.Name, "namespace": namespace}, "spec": map[string]any{}}
	mergePatch(object, patch)
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	p, err := profile.Decode(text)
	if err == nil {
		err = p.Validate("understudy-system")
	}
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", text, err))
	}
	return &p.Spec
}

// mergePatch merges a patch without nulls (RFC 7386).
func mergePatch(into, patch map[string]any) {
	for key, value := range patch {
		below, ok := value.(map[string]any)
		if !ok {
			into[key] = value
			continue
		}
		sub, ok := into[key].(map[string]any)
		if !ok {
			sub = map[string]any{}
			into[key] = sub
		}
		mergePatch(sub, below)
	}
}
