package mesh

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
)

// entryWith is a valid ServiceEntry with spec as its spec.
func entryWith(spec string) string {
	return "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec: " + spec + "\n"
}

func TestValidation(t *testing.T) {
	const port = `ports: [{number: 80, name: http, protocol: HTTP}]`
	long := strings.Repeat("a", 64)
	for _, c := range []struct{ name, spec, field, reason string }{
		{"no hosts", `{` + port + `, resolution: DNS}`, "spec.hosts", "at least one"},
		{"full wildcard", `{hosts: ["*"], ` + port + `, resolution: NONE}`, "spec.hosts[0]", "*.example.com"},
		{"inner wildcard", `{hosts: [a.b, "a.*.b"], ` + port + `, resolution: NONE}`, "spec.hosts[1]", "first label"},
		{"two trailing dots", `{hosts: [a.b..], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "63 letters"},
		{"partial wildcard of nothing", `{hosts: ["*-.b"], ` + port + `, resolution: NONE}`, "spec.hosts[0]", "63 letters"},
		{"wildcard of a number", `{hosts: ["*.10"], ` + port + `, resolution: NONE}`, "spec.hosts[0]", "not an address"},
		{"no domain at all", `{hosts: ["*."], ` + port + `, resolution: NONE}`, "spec.hosts[0]", "*.example.com"},
		{"bad label", `{hosts: ["-a.b"], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "63 letters"},
		{"long label", `{hosts: [` + long + `.b], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "63 letters"},
		{"long host", `{hosts: [` + strings.Repeat("a.", 130) + `b], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "253"},
		{"address as host", `{hosts: [10.0.0.1], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "spec.addresses"},
		{"bad CIDR", `{hosts: [a.b], addresses: [10.0.0.0/33], ` + port + `, resolution: NONE}`, "spec.addresses[0]", "CIDR"},
		{"bad address", `{hosts: [a.b], addresses: [10.0.0], ` + port + `, resolution: NONE}`, "spec.addresses[0]", "IP address"},
		{"CIDR with DNS", `{hosts: [a.b], addresses: [10.0.0.0/8], ` + port + `, resolution: DNS}`, "spec.addresses[0]", "NONE or STATIC"},
		{"port 0", `{hosts: [a.b], ports: [{number: 0, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].number", "1 to 65535"},
		{"port 65536", `{hosts: [a.b], ports: [{number: 65536, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].number", "1 to 65535"},
		{"target port", `{hosts: [a.b], ports: [{number: 1, targetPort: 65536, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].targetPort", "1 to 65535"},
		{"protocol", `{hosts: [a.b], ports: [{number: 1, name: a, protocol: QUIC}], resolution: DNS}`, "spec.ports[0].protocol", "one of HTTP"},
		{"port name", `{hosts: [a.b], ports: [{number: 1, name: a_b, protocol: TCP}], resolution: DNS}`, "spec.ports[0].name", "letters"},
		{"no port name", `{hosts: [a.b], ports: [{number: 1, protocol: TCP}], resolution: DNS}`, "spec.ports[0].name", "letters"},
		{"port twice", `{hosts: [a.b], ports: [{number: 1, name: a, protocol: TCP}, {number: 1, name: b, protocol: HTTP}], resolution: DNS}`, "spec.ports[1].number", "twice"},
		{"port name twice", `{hosts: [a.b], ports: [{number: 1, name: a, protocol: TCP}, {number: 2, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[1].name", "twice"},
		{"NONE with endpoints", `{hosts: [a.b], ` + port + `, resolution: NONE, endpoints: [{address: 10.0.0.1}]}`, "spec.endpoints", "NONE"},
		{"STATIC with a name", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: x.y}]}`, "spec.endpoints[0].address", "resolution DNS"},
		{"no address", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: x.y}, {weight: 1}]}`, "spec.endpoints[1].address", "missing"},
		{"endpoint of a dot", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: "."}]}`, "spec.endpoints[0].address", "host name"},
		{"bad endpoint name", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: "x y"}]}`, "spec.endpoints[0].address", "host name"},
		{"wildcard endpoint", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: "*.y"}]}`, "spec.endpoints[0].address", "host name"},
		{"unix with DNS", `{hosts: [a.b], ` + port + `, resolution: DNS, endpoints: [{address: "unix:///a"}]}`, "spec.endpoints[0].address", "STATIC"},
		{"relative unix", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: "unix://a"}]}`, "spec.endpoints[0].address", "absolute"},
		{"long unix", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: "unix:///` + strings.Repeat("a", 107) + `"}]}`, "spec.endpoints[0].address", "at most 107"},
		{"unix with ports", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: "unix:///a", ports: {http: 1}}]}`, "spec.endpoints[0].ports", "Unix"},
		{"unix and two ports", `{hosts: [a.b], ports: [{number: 1, name: a, protocol: TCP}, {number: 2, name: b, protocol: TCP}], resolution: STATIC, endpoints: [{address: "unix:///a"}]}`, "spec.ports", "exactly one"},
		{"endpoint port unknown", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {other: 1}}]}`, "spec.endpoints[0].ports[other]", "spec.ports"},
		{"endpoint port 0", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: 10.0.0.1, ports: {http: 0}}]}`, "spec.endpoints[0].ports[http]", "1 to 65535"},
		{"label too long", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: 10.0.0.1, labels: {a: ` + long + `}}]}`, "spec.endpoints[0].labels[a]", "63"},
		{"round robin with two", `{hosts: [a.b], ` + port + `, resolution: DNS_ROUND_ROBIN, endpoints: [{address: x.y}, {address: y.z}]}`, "spec.endpoints", "one at most"},
		{"wildcard with DNS", `{hosts: [a.b, "*.b"], ` + port + `, resolution: DNS}`, "spec.hosts[1]", "NONE"},
		{"selector and endpoints", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: 10.0.0.1}], workloadSelector: {labels: {a: b}}}`, "spec.workloadSelector", "one of the two"},
		{"exportTo", `{hosts: [a.b], ` + port + `, resolution: DNS, exportTo: ["*", "A B"]}`, "spec.exportTo[1]", "namespace"},
		{"unknown field", `{hosts: [a.b], ports: [{number: 1, name: a, protocl: TCP}], resolution: DNS}`, "spec.ports[0].protocl", "unknown field"},
		{"number as string", `{hosts: [a.b], ports: [{number: "80", name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].number", "whole number"},
		{"fraction", `{hosts: [a.b], ports: [{number: 80.5, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].number", "whole number"},
		{"negative", `{hosts: [a.b], ports: [{number: -1, name: a, protocol: TCP}], resolution: DNS}`, "spec.ports[0].number", "whole number"},
		{"string for list", `{hosts: a.b, ` + port + `, resolution: DNS}`, "spec.hosts", "a list"},
		{"number for string", `{hosts: [1], ` + port + `, resolution: DNS}`, "spec.hosts[0]", "a string"},
		{"enum", `{hosts: [a.b], ` + port + `, resolution: MAGIC}`, "spec.resolution", "DNS_ROUND_ROBIN"},
		{"list for map", `{hosts: [a.b], ` + port + `, resolution: STATIC, endpoints: [{address: 10.0.0.1, labels: [a]}]}`, "spec.endpoints[0].labels", "a map"},
		{"null in list", `{hosts: [a.b], ports: [null], resolution: DNS}`, "spec.ports[0]", "an object"},
		{"spec is a list", `[]`, "spec", "an object"},
		{"spec is null", `null`, "spec", ""},
	} {
		t.Run(c.name, func(t *testing.T) { checkRefused(t, entryWith(c.spec), c.field, c.reason) })
	}
}

// checkRefused wants one document, bad at field for reason, and nothing in force.
func checkRefused(t *testing.T, text, field, reason string) {
	t.Helper()
	r, report := load(t, text, testOptions())
	if len(r.services) != 0 {
		t.Errorf("%d services in force", len(r.services))
	}
	if len(report.Documents) != 1 {
		t.Fatalf("%d documents reported: %+v", len(report.Documents), report.Documents)
	}
	d := report.Documents[0]
	if d.Status != statusError || d.Field != field || !strings.Contains(d.Reason, reason) {
		t.Errorf("status %s, field %q, reason %q; want error, %q, ...%q...", d.Status, d.Field, d.Reason, field, reason)
	}
	if strings.ContainsAny(d.Reason, "\n") {
		t.Errorf("reason has several lines: %q", d.Reason)
	}
}

func TestEnvelope(t *testing.T) {
	for _, c := range []struct{ name, text, field, reason string }{
		{"scalar", "hello", "", "is not an object"},
		{"list", "[1]", "", "is not an object"},
		{"broken YAML", "a: [", "", "line 1"},
		{"key twice", "kind: A\nkind: B", "", "already set"},
		{"no kind", "apiVersion: v1", "kind", "missing"},
		{"no apiVersion", "kind: ServiceEntry", "apiVersion", "missing"},
		{"kind is a number", "apiVersion: v1\nkind: 1", "kind", "a string"},
		{"version", "apiVersion: networking.istio.io/vlbetal\nkind: ServiceEntry\nmetadata: {name: a}", "apiVersion", "v1beta1"},
		{"group", "apiVersion: networking.istio.i/v1\nkind: WorkloadEntry\nmetadata: {name: a}", "apiVersion", "networking.istio.io/"},
		{"no name", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nspec: {}", "metadata.name", "missing"},
		{"no spec", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}", "spec", "missing"},
		{"misspelt spec", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nsepc: {}", "sepc", "unknown field"},
		{"metadata", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: a\nspec: {}", "metadata", "an object"},
		{"creation time", "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a, creationTimestamp: yesterday}\nspec: {}", "metadata.creationTimestamp", "2026"},
		{"workload", "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a}\nspec: {address: 10.0.0.1, weight: x}", "spec.weight", "whole number"},
	} {
		t.Run(c.name, func(t *testing.T) { checkRefused(t, c.text, c.field, c.reason) })
	}
}

// TestYAMLErrorLine wants the line of the file, not of the document, in a YAML error.
func TestYAMLErrorLine(t *testing.T) {
	_, report := load(t, "# one\n---\n"+entryWith("{hosts: [a.b], resolution: NONE}")+"---\na: b\nc: [\n", testOptions())
	d := report.Documents[1]
	if d.Index != 2 || d.Line != 7 || !strings.Contains(d.Reason, "line 9") && !strings.Contains(d.Reason, "line 10") {
		t.Errorf("%+v", d)
	}
}

// TestUnknownResolution wants what a later API may bring refused.
func TestUnknownResolution(t *testing.T) {
	if _, ferr := newDecoder(testOptions()).newEntry(&networking.ServiceEntry{Hosts: []string{"*.x"}, Resolution: 5}); ferr == nil || ferr.Field != "spec.resolution" {
		t.Errorf("resolution 5: %v", ferr)
	}
}
