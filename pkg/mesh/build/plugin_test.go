package build

import (
	"strings"
	"testing"

	"understudy.mesh/pkg/envoyfilter"
)

// TestBadPluginRefuses: in the place of a WasmPlugin that is bad, Envoy has a filter that refuses the traffic of its match, and no other.
func TestBadPluginRefuses(t *testing.T) {
	for spec, want := range map[string]map[string]string{
		"urk: a": {InboundListener: "filters.http.rbac", "240.240.0.1_80": "filters.http.rbac"},
		"urk: a, type: NETWORK, match: [{mode: SERVER, ports: [{number: 9080}]}]": {InboundListener: "filters.network.rbac", "240.240.0.1_80": ""},
	} {
		text := filteredServices + "---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {" + spec + "}\n"
		r, _ := load(t, text, testOptions())
		out, err := New(testOptions()).Build(r, giveVIPs(r.AutoHosts()), filterSet(r))
		if err != nil {
			t.Fatal(err)
		}
		if p := out.Filters.Report(out.Patched)[0]; p.Kind != "WasmPlugin" || p.Patches[0].Result != envoyfilter.Applied {
			t.Errorf("%+v", p)
		}
		for _, l := range out.Resources[ListenerType] {
			kind, named := want[l.Name]
			if has := strings.Contains(string(bodyOf(l)), "wasm-default-deny") && strings.Contains(string(bodyOf(l)), kind); named && has != (kind != "") {
				t.Errorf("%s: listener %s refuses: %v", spec, l.Name, has)
			}
		}
		validate(t, out)
	}
}
