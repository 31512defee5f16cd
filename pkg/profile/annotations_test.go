package profile

import (
	"fmt"
	"strings"
	"testing"
)

const traffic = "traffic.sidecar.istio.io/"

func TestAnnotationsAreSettings(t *testing.T) {
	tests := []struct{ name, value, field, want string }{
		{"sidecar.istio.io/interceptionMode", "TPROXY", "capture.mode", `"TPROXY"`},
		{traffic + "includeOutboundIPRanges", "10.0.0.0/8, 1.2.3.4/32", "capture.includeOutboundIPRanges", `["10.0.0.0/8","1.2.3.4/32"]`},
		{traffic + "includeOutboundIPRanges", "", "capture.includeOutboundIPRanges", `[]`},
		{traffic + "excludeOutboundIPRanges", "10.0.0.0/8", "capture.excludeOutboundIPRanges", `["10.0.0.0/8"]`},
		{traffic + "includeInboundPorts", "", "capture.includeInboundPorts", `[]`},
		{traffic + "includeInboundPorts", "*", "capture.includeInboundPorts", `["*"]`},
		{traffic + "excludeInboundPorts", "80,81", "capture.excludeInboundPorts", `[15090,15021,15020,80,81]`},
		{traffic + "includeOutboundPorts", "80", "capture.includeOutboundPorts", `[80]`},
		{traffic + "excludeOutboundPorts", "80", "capture.excludeOutboundPorts", `[80]`},
		{traffic + "excludeInterfaces", "net1,net2", "capture.excludeInterfaces", `["net1","net2"]`},
		{traffic + "kubevirtInterfaces", "net1", "capture.rerouteVirtualInterfaces", `["net1"]`},
		{"istio.io/reroute-virtual-interfaces", "net1", "capture.rerouteVirtualInterfaces", `["net1"]`},
		{"status.sidecar.istio.io/port", "0", "proxy.statusPort", `0`},
		{"readiness.status.sidecar.istio.io/initialDelaySeconds", "1", "proxy.readiness.initialDelaySeconds", `1`},
		{"readiness.status.sidecar.istio.io/periodSeconds", "2", "proxy.readiness.periodSeconds", `2`},
		{"readiness.status.sidecar.istio.io/failureThreshold", "3", "proxy.readiness.failureThreshold", `3`},
		{"sidecar.istio.io/proxyMemoryLimit", "512Mi", "proxy.resources", `{"limits":{"memory":"512Mi"}}`},
		{"sidecar.istio.io/proxyImage", "example.com/proxy:1", "proxy.image", `"example.com/proxy:1"`},
		{"sidecar.istio.io/logLevel", "debug", "proxy.logLevel", `"debug"`},
		{"sidecar.istio.io/componentLogLevel", "misc:error,dns:debug", "proxy.componentLogLevel", `"misc:error,dns:debug"`},
		{"sidecar.istio.io/agentLogLevel", "dns:debug", "proxy.agentLogLevel", `"dns:debug"`},
		{"sidecar.istio.io/discoveryAddress", "istiod.x:15012", "controlPlane.discoveryAddress", `"istiod.x:15012"`},
		{"sidecar.istio.io/nativeSidecar", "true", "proxy.native", `"Always"`},
		{"sidecar.istio.io/nativeSidecar", "false", "proxy.native", `"Never"`},
		{"sidecar.istio.io/rewriteAppHTTPProbers", "false", "proxy.rewriteAppProbes", `false`},
		{"prometheus.istio.io/merge-metrics", "false", "proxy.mergePrometheus", `false`},
		{"proxy.istio.io/config", "holdApplicationUntilProxyStarts: true", "proxy.holdApplicationUntilProxyStarts", `true`},
		{"proxy.istio.io/config", "interceptionMode: TPROXY", "capture.mode", `"TPROXY"`},
	}
	seen := map[string]bool{}
	for _, tt := range tests {
		seen[tt.name] = true
		layers, warnings, err := FromAnnotations(map[string]string{tt.name: tt.value, "unrelated": "x"})
		if err != nil || len(layers) != 1 || len(warnings) > 0 {
			t.Errorf("%s: %q: %d layers, %q, %v", tt.name, tt.value, len(layers), warnings, err)
			continue
		}
		value, source := asText(t, Resolve(layers...), tt.field)
		if value != tt.want || !strings.HasPrefix(source, "annotation "+tt.name) {
			t.Errorf("%s: %q: %s is %s by %s, want %s", tt.name, tt.value, tt.field, value, source, tt.want)
		}
	}
	for _, a := range annotations() {
		if !seen[a.names[len(a.names)-1]] {
			t.Errorf("%v: not tested", a.names)
		}
	}
}

func TestWrongAnnotationsAreErrors(t *testing.T) {
	tests := []struct{ name, value, want string }{
		{"sidecar.istio.io/interceptionMode", "redirect", "want one of REDIRECT, TPROXY, NONE"},
		{traffic + "includeOutboundIPRanges", "10.0.0.0", "want a CIDR"},
		{traffic + "excludeOutboundIPRanges", "*", "want a CIDR"},
		{traffic + "includeInboundPorts", "80,*", "want a port"},
		{traffic + "excludeInboundPorts", "65536", "want a port"},
		{traffic + "excludeOutboundPorts", "http", "want a port"},
		{traffic + "excludeInterfaces", "1net", "want the name of a network interface"},
		{"status.sidecar.istio.io/port", "15001", "want another"},
		{"status.sidecar.istio.io/port", "x", "want a whole number"},
		{"readiness.status.sidecar.istio.io/periodSeconds", "-1", "want a whole number from 1"},
		{"sidecar.istio.io/proxyCPU", "much", "want a quantity"},
		{"sidecar.istio.io/proxyMemory", "1025", "1025 bytes are less than any container needs, 4Mi; 1025Mi?"},
		{"sidecar.istio.io/logLevel", "loud", `"loud" is not one of trace`},
		{"sidecar.istio.io/agentLogLevel", "dns:loud", "loud"},
		{"sidecar.istio.io/discoveryAddress", "istiod", "want host:port"},
		{"sidecar.istio.io/nativeSidecar", "perhaps", "want true or false"},
		{"sidecar.istio.io/proxyImage", "", "want the name of an image"},
	}
	for _, tt := range tests {
		layers, _, err := FromAnnotations(map[string]string{tt.name: tt.value})
		start := fmt.Sprintf("annotation %s: %q: ", tt.name, tt.value)
		if err == nil || !strings.HasPrefix(err.Error(), start) || !strings.Contains(err.Error(), tt.want) || layers != nil {
			t.Errorf("%s: %q: %v, want ...%s", tt.name, tt.value, err, tt.want)
		}
	}
	_, _, err := FromAnnotations(map[string]string{"proxy.istio.io/config": "concurrency: -1\nbogus: 1\ntracing: yes"})
	for _, want := range []string{"annotation proxy.istio.io/config: ", "bogus: unknown field", "tracing", "\n"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
	_, _, err = FromAnnotations(map[string]string{"sidecar.istio.io/proxyCPU": "2", "sidecar.istio.io/proxyCPULimit": "1"})
	if want := "annotation sidecar.istio.io/proxyCPU, sidecar.istio.io/proxyCPULimit: spec.proxy.resources.requests.cpu: \"2\": want at most the limit, 1"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// A single-purpose annotation is above proxy.istio.io/config, and that above the namespace.
func TestOrderOfAnnotations(t *testing.T) {
	layers, _, err := FromAnnotations(map[string]string{
		"status.sidecar.istio.io/port": "8020",
		"proxy.istio.io/config":        "statusPort: 8021\nconcurrency: 4",
	})
	if err != nil {
		t.Fatal(err)
	}
	s := Resolve(append(layers, Layer{"namespace x", &Spec{Proxy: &Proxy{StatusPort: new(int32(8022)), Concurrency: new(int32(1))}}})...)
	if *s.Proxy.StatusPort != 8020 || *s.Proxy.Concurrency != 4 || *s.Proxy.Config != `{"concurrency":4,"statusPort":8020}` {
		t.Errorf("port %d, concurrency %d, config %s", *s.Proxy.StatusPort, *s.Proxy.Concurrency, *s.Proxy.Config)
	}
}

func TestAnnotationsWithoutEffectAreWarnedOf(t *testing.T) {
	_, warnings, err := FromAnnotations(map[string]string{"sidecar.istio.io/bootstrapOverride": "x", "sidecar.istio.io/proxyImageType": "debug"})
	if err != nil || len(warnings) != 2 || !strings.HasPrefix(warnings[0], `annotation sidecar.istio.io/bootstrapOverride: "x" has no effect`) {
		t.Errorf("%q, %v", warnings, err)
	}
}
