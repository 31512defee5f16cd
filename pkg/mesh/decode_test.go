package mesh

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.mesh/pkg/mesh/internal/document"
)

// TestMergedDocument wants a document with merge keys in force, and its neighbours too.
func TestMergedDocument(t *testing.T) {
	text := entryWith("\n  hosts: [a.b]\n  ports:\n  - &p {number: 80, name: http, protocol: HTTP}\n  - {<<: *p, number: 81, name: other}\n  - {number: 82, <<: [*p, {targetPort: 8080}], name: third}\n  resolution: DNS") +
		"---\n" + se("b", "b.x", 1)
	r, report := load(t, text, testOptions())
	for _, d := range report.Documents {
		if d.Status != statusOK {
			t.Errorf("%+v", d)
		}
	}
	if got := fmt.Sprint(r.services[0].Ports[2].Number, r.services[0].Ports[2].target, len(r.services)); got != "82 8080 2" {
		t.Error(got)
	}
}

// TestAliasesAreBounded wants an error, and soon, of a document whose aliases make far more text than it has.
func TestAliasesAreBounded(t *testing.T) {
	long := strings.Repeat("a", 1<<20)
	many := strings.TrimSuffix(strings.Repeat("*l, ", 1000), ", ")
	for _, text := range []string{
		entryWith("{subjectAltNames: [&l " + long + ", " + many + "], hosts: [a.b], resolution: NONE}"),
		"apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: a, pluginConfig: {a: &l " + long + ", b: [" + many + "]}}\n",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: &l " + long + "}, spec: {url: a, pluginConfig: {b: [" + many + "]}}}]\n",
		"apiVersion: v1\nkind: List\nitems: [{kind: &l " + long + "}, " + strings.ReplaceAll(many, "*l", "{kind: *l}") + "]\n",
	} {
		_, report := load(t, text, testOptions())
		if len(report.Documents) != 1 || !strings.Contains(report.Documents[0].Reason, "aliases") {
			t.Errorf("%.200s", fmt.Sprintf("%+v", report.Documents))
		}
	}
	_, report := load(t, "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"+
		"e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\ng: [*f, *f, *f, *f, *f, *f, *f, *f]\n", testOptions())
	if len(report.Documents) != 1 || !strings.Contains(report.Documents[0].Reason, "excessive aliasing") {
		t.Errorf("%.200s", fmt.Sprintf("%+v", report.Documents))
	}
}

// TestListItemSums wants the sum of a List's item to be that of its content: the same wherever it stands, another for
// any other content, and never the same for two items that differ in nothing but their names.
func TestListItemSums(t *testing.T) {
	list := func(items ...string) string {
		return "{apiVersion: v1, kind: List, items: [" + strings.Join(items, ", ") + "]}"
	}
	sums := map[string]uint64{}
	d := newDecoder(testOptions())
	read := func(text string) (out []uint64) {
		c := document.Chunk{Text: []byte(text)}
		for _, dec := range d.document(document.NewStream([]document.Chunk{c}), c, 1) {
			if dec.obj == nil {
				t.Fatal(dec.err)
			}
			out = append(out, dec.obj.sum)
		}
		return out
	}
	a, b := flow("a", "a.x"), flow("b", "a.x")
	for i, text := range []string{a, b, strings.Replace(a, "number: 1", "number: 2", 1),
		strings.Replace(a, "name: a", "name: a, namespace: ns", 1), strings.Replace(a, "name: a", `name: a, creationTimestamp: "2026-01-02T15:04:05Z"`, 1)} {
		sum := read(list(text, b))[0]
		for other, s := range sums {
			if s == sum {
				t.Errorf("item %d: the sum of %s", i, other)
			}
		}
		sums[text] = sum
	}
	if again := read(list(b, a)); again[1] != sums[a] || again[0] != sums[b] {
		t.Error("the sum of an item depends on its place")
	}
}

// TestWasmPlugins: a good one is a filter, of its kind, and each version of it has another sum, in a List too; a bad one is none.
func TestWasmPlugins(t *testing.T) {
	plugin := func(metadata, spec string) string {
		return "{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: a" + metadata + "}, spec: {" + spec + "}}"
	}
	read := func(text string) (*Registry, Report) {
		return load(t, text, testOptions())
	}
	sums := map[uint64]string{}
	for _, list := range []string{"%s", "{apiVersion: v1, kind: List, items: [%s]}"} {
		for _, text := range []string{
			plugin("", "url: a"), plugin("", "url: a, pluginConfig: {b: 9007199254740993}"), plugin("", "url: a, pluginConfig: {b: 9007199254740992}"),
			plugin("", "url: a, priority: 1"), plugin(", annotations: {understudy.mesh/poll: 5m}", "url: a"), plugin(", annotations: {understudy.mesh/poll: 6m}", "url: a"),
		} {
			r, report := read(fmt.Sprintf(list, text))
			if len(r.filters) != 1 || r.filters[0].Title() != "WasmPlugin default/a" || report.Documents[0].Status != statusOK {
				t.Fatalf("%s: %+v", text, report.Documents)
			}
			if other := sums[r.filters[0].Sum]; other != "" {
				t.Errorf("%s has the sum of %s", text, other)
			}
			sums[r.filters[0].Sum] = text
		}
	}
	for text, want := range map[string]string{
		strings.Replace(plugin("", "url: a"), "v1alpha1", "v1", 1):                                   "apiVersion: is \"extensions.istio.io/v1\", should be extensions.istio.io/v1alpha1",
		strings.Replace(plugin("", "url: a"), "extensions", "networking", 1):                         "should be extensions.istio.io/v1alpha1",
		plugin("", "url: a, verificationKey: k"):                                                     "spec.verificationKey: signatures are not verified",
		plugin(", annotations: {understudy.mesh/poll: x}", "url: a"):                                 "metadata.annotations[understudy.mesh/poll]: is \"x\"",
		plugin(", annotations: {understudy.mesh/poll: [x]}", "url: a"):                               "metadata.annotations[understudy.mesh/poll]",
		"{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: a}, spec: a}": "spec: should be an object",
	} {
		r, report := read(text)
		refuses := strings.Contains(report.Documents[0].Reason, "is refused (failStrategy)")
		if d := report.Documents[0]; (len(r.filters) != 0) != refuses || d.Status != statusError || !strings.Contains(d.Field+": "+d.Reason, want) {
			t.Errorf("%s: %+v; want %s", text, report.Documents, want)
		}
	}
}

// TestBadWasmPlugin: one that is bad from the first refuses what it would guard, unless that may pass without it or it does not say whose
// traffic it is; a good version before it stays, and a good one after it is in force.
func TestBadWasmPlugin(t *testing.T) {
	const good, bad = "url: a", "urk: a"
	plugin := func(spec string) string {
		return "{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: a}, spec: {" + spec + "}}"
	}
	for spec, refuses := range map[string]bool{
		bad: true,
		bad + ", selector: {matchLabels: {app: b}}, match: [{mode: SERVER}]": true,
		bad + ", failStrategy: FAIL_RELOAD":                                  true,
		bad + ", failStrategy: SOMEHOW":                                      true,
		bad + ", match: [{ports: [{number: 0}]}]":                            true,
		bad + ", failStrategy: FAIL_OPEN":                                    false,
		bad + ", fail_strategy: FAIL_OPEN":                                   false,
		bad + ", selector: [a]":                                              false,
		bad + ", targetRefs: [{kind: Gateway, name: a}]":                     false,
	} {
		for _, list := range []string{"%s", "{apiVersion: v1, kind: List, items: [%s]}"} {
			r, report := load(t, fmt.Sprintf(list, plugin(spec)), testOptions())
			if d := report.Documents[0]; (len(r.filters) == 1) != refuses || d.Status != statusError || strings.Contains(d.Reason, "is refused (failStrategy)") != refuses {
				t.Errorf("%s: %d filters, %+v", spec, len(r.filters), report.Documents)
			}
		}
	}

	dir := t.TempDir()
	source, err := NewSource(dir, testOptions(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	step := func(spec string) (*Registry, Document) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(plugin(spec)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := source.Load()
		if err != nil {
			t.Fatal(err)
		}
		return r, source.Report().Documents[0]
	}
	r, d := step(bad)
	first := r.filters[0].Sum
	if again, _ := step(bad + ", type: NETWORK"); again.filters[0].Sum == first || again.sum == r.sum {
		t.Error("another bad version is the same")
	}
	if r, d = step(good); len(r.filters) != 1 || d.Status != statusOK {
		t.Errorf("a good version after a bad one: %+v", d)
	}
	in := r.filters[0].Sum
	if r, d = step(bad); len(r.filters) != 1 || r.filters[0].Sum != in || d.Status != statusStale || strings.Contains(d.Reason, "until it is right") {
		t.Errorf("a bad version after a good one: %+v", d)
	}
}

// TestDeployments: an ASMFilterDeployment is an EnvoyFilter of its own name and kind, or a bad document with the field that is wrong.
func TestDeployments(t *testing.T) {
	document := func(metadata, filter string) string {
		return "{apiVersion: istio.alibabacloud.com/v1beta1, kind: ASMFilterDeployment, metadata: {name: a" + metadata + "}, " +
			"spec: {workload: {kind: Deployment, labels: {app: details}}, filter: {" + filter + "}}}"
	}
	sums := map[uint64]string{}
	for _, list := range []string{"%s", "{apiVersion: v1, kind: List, items: [%s]}"} {
		for _, text := range []string{document("", "image: a"), document("", "image: b"), document(", annotations: {understudy.mesh/fail-strategy: FAIL_OPEN}", "image: a")} {
			r, report := load(t, fmt.Sprintf(list, text), testOptions())
			if len(r.filters) != 1 || r.filters[0].Title() != "ASMFilterDeployment default/a" || report.Documents[0].Status != statusOK {
				t.Fatalf("%s: %+v", text, report.Documents)
			}
			if other := sums[r.filters[0].Sum]; other != "" {
				t.Errorf("%s has the sum of %s", text, other)
			}
			sums[r.filters[0].Sum] = text
		}
	}
	for text, want := range map[string]string{
		document("", "img: a"):                                                                                                 "spec.filter.img: unknown field",
		document("", "image: a, parameters: {name: hello}"):                                                                    "spec.filter.parameters: is an object, should be a string",
		document(", annotations: {understudy.mesh/fail-strategy: OPEN}", "image: a"):                                           "metadata.annotations[understudy.mesh/fail-strategy]: is \"OPEN\"",
		strings.Replace(document("", "image: a"), "labels: {app: details}", "labels: {version: 1}", 1):                         "spec.workload.labels.version: is a number, should be a string: put it in quotes",
		strings.Replace(document("", "image: a"), "v1beta1", "v1", 1):                                                          "apiVersion: is \"istio.alibabacloud.com/v1\", should be istio.alibabacloud.com/v1beta1",
		"{apiVersion: istio.alibabacloud.com/v1beta1, kind: ASMFilterDeployment, metadata: {name: a}, spec: {1: a, \"1\": b}}": "spec.1: is there twice",
	} {
		r, report := load(t, text, testOptions())
		if d := report.Documents[0]; len(r.filters) != 0 || d.Status != statusError || !strings.Contains(d.Field+": "+d.Reason, want) {
			t.Errorf("%s: %+v; want %s", text, report.Documents, want)
		}
	}
}
