package istiod

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/pkg/status"
)

const (
	tcpProxy = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
	alpn     = "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
	exchange = "envoy.tcp.metadataexchange.config.MetadataExchange"
	stats    = "stats.PluginConfig"
)

// filtered is a listener whose filters have configurations of these types.
func filtered(t *testing.T, name string, types []string) string {
	t.Helper()
	chain := &listenerv3.FilterChain{}
	for _, name := range types {
		chain.Filters = append(chain.Filters, &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: &anypb.Any{TypeUrl: typePrefix + name}}})
	}
	b, err := proto.Marshal(&listenerv3.Listener{Name: name, FilterChains: []*listenerv3.FilterChain{chain}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// knowing is the node of an Envoy that has the extensions of these types.
func knowing(types ...string) *corev3.Node {
	return &corev3.Node{Id: "sidecar~1.1.1.1~app.default~x", Extensions: []*corev3.Extension{
		{Name: "some", TypeUrls: types}, {Name: "off", TypeUrls: []string{"envoy.extensions.off"}, Disabled: true},
	}}
}

// TestMissingExtensions: readiness and the page name them while they matter, and no longer than that.
func TestMissingExtensions(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, func(i *Istiod) { i.c.Vital = append(i.c.Vital, "connect_terminate") })
	e := a.envoy()
	e.say(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: listenerType, Node: knowing(tcpProxy)})
	s := f.stream()
	s.asked("Listener node", "NameTable")
	s.send(nameTable("t1"))
	s.asked("NameTable ack t1")
	s.give(listenerType, "virtualOutbound="+filtered(t, "virtualOutbound", []string{exchange, tcpProxy}), "other="+filtered(t, "other", []string{exchange, alpn}))
	e.gets("Listener +virtualOutbound +other", "Error adding/updating listener(s) virtualOutbound: no such filter, other: no such filter")
	a.pending(`listener "virtualOutbound" of istiod: Envoy refuses it, which lacks the extensions ` + exchange + ": " + lackRemedy + ": no such filter")
	page := func() string {
		page := httptest.NewRecorder()
		a.DebugPages()[debugPage].ServeHTTP(page, httptest.NewRequest(http.MethodGet, debugPage, nil))
		return page.Body.String()
	}
	for _, want := range []string{`"` + exchange + `": 2`, `"` + alpn + `": 1`} {
		if got := page(); !strings.Contains(got, want) {
			t.Errorf("the page has no %s: %s", want, got)
		}
	}
	s.asked("Listener nack n1")
	s.give(listenerType, "virtualOutbound="+filtered(t, "virtualOutbound", []string{tcpProxy}), "-other")
	e.gets("Listener +virtualOutbound -other", "")
	a.pending("ready")
	s.asked("Listener ack n2")
	s.give(listenerType, "connect_terminate="+filtered(t, "connect_terminate", []string{alpn}))
	e.gets("Listener +connect_terminate", "Error adding/updating listener(s) connect_terminate: no such filter")
	a.pending(`listener "connect_terminate" of istiod: Envoy refuses it, which lacks the extensions ` + alpn)
	s.asked("Listener nack n3")
	s.give(listenerType, "-connect_terminate")
	e.gets("Listener -connect_terminate", "")
	a.pending("ready")
	if got := page(); strings.Contains(got, "lackingExtensions") {
		t.Errorf("nothing needs them any more, and the page says %s", got)
	}
}

// TestMetadataDiscovery: readiness names what only Istio's Envoy can, until an Envoy has started with it.
func TestMetadataDiscovery(t *testing.T) {
	f := startFake(t)
	a := newAgent(t, f, func(i *Istiod) {
		c := i.c
		c.MetadataDiscovery = true
		New(c) // says so to the same readiness
		i.c.MetadataDiscovery = true
	})
	a.pending("hbone: waiting: Envoy has not started with istio.workload.BootstrapExtension yet, which ISTIO_META_ENABLE_HBONE=true")
	a.envoy().asks(listenerType)
	f.stream()
	if _, pending := a.ready.Check(); slices.ContainsFunc(pending, func(p status.Pending) bool { return p.Task == taskHBONE }) {
		t.Errorf("Envoy has started, and readiness has %v", pending)
	}
}
