package config

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

func TestNode(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{
		NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2")},
		Environ: []string{
			"POD_NAME=web-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=web", "INSTANCE_IP=10.0.0.2",
			"ISTIO_META_NODE_NAME=n1", "ISTIO_META_NAMESPACE=forged", "ISTIO_META_POD_PORTS=[{\"containerPort\":80}]",
			`ISTIO_METAJSON_LABELS={"app":"static","only":"static"}`, "ISTIO_META_DNS_CAPTURE=true",
			"ISTIO_META_ISTIO_VERSION=1.30.1", "ISTIO_META_NETWORK=low", "DNS_PROXY_ADDR=localhost:15053",
			`ISTIO_METAJSON_MORE={"EXTRA":{"a":1},"NETWORK":"high"}`, "PROXY_CONFIG=proxyMetadata: {ISTIO_META_NODE_NAME: low, ISTIO_META_OWNER: o}",
		},
		ReadFile: files(map[string]string{
			labelsFile:      "app=\"web\"\npod-template-hash=\"abc\"\ntopology.istio.io/locality=\"r.z.s\"",
			annotationsFile: "a=\"b\"\nkubectl.kubernetes.io/last-applied-configuration=\"{}\"",
		}),
	})
	proxyConfig := cfg.Node.Metadata["PROXY_CONFIG"]
	delete(cfg.Node.Metadata, "PROXY_CONFIG")
	want := Node{
		ID: "sidecar~10.0.0.2~web-1.shop~shop.svc.cluster.local", Cluster: "web.shop",
		Region: "r", Zone: "z", SubZone: "s",
		Metadata: map[string]any{
			"NAME": "web-1", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "ISTIO_VERSION": "1.30.1", "NETWORK": "high",
			"INSTANCE_IPS": "10.0.0.2,10.0.0.1", "NODE_NAME": "n1", "OWNER": "o", "POD_PORTS": `[{"containerPort":80,"protocol":""}]`,
			"LABELS":        map[string]any{"app": "web", "only": "static", "topology.istio.io/locality": "r.z.s", "istio-locality": "r/z/s"},
			"STATIC_LABELS": map[string]any{"app": "static", "only": "static"},
			"ANNOTATIONS":   map[string]any{"a": "b"},
			"app":           "static", "only": "static", "EXTRA": map[string]any{"a": 1.0},
			"DNS_CAPTURE": "true", "DNS_PROXY_ADDR": "localhost:15053", "PILOT_SAN": []any{"istiod.istio-system.svc"},
			"ENVOY_STATUS_PORT": 15021, "ENVOY_PROMETHEUS_PORT": 15090,
			"ENVOY_SKIP_DEPRECATED_LOGS": "true", "METADATA_DISCOVERY": "false",
			"WORKLOAD_IDENTITY_SOCKET_FILE": "socket",
		},
	}
	if diff := cmp.Diff(want, cfg.Node); diff != "" {
		t.Errorf("node (-want +got):\n%s", diff)
	}
	checkProxyConfig(t, proxyConfig)
}

// checkProxyConfig reads the metadata as the control plane does.
func checkProxyConfig(t *testing.T, tree any) {
	t.Helper()
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var got meshv1alpha1.ProxyConfig
	if err := protojson.Unmarshal(text, &got); err != nil {
		t.Fatalf("the metadata PROXY_CONFIG is no ProxyConfig: %v\n%s", err, text)
	}
	if got.DrainDuration.AsDuration().Seconds() != 45 || got.ProxyMetadata["ISTIO_META_OWNER"] != "o" || got.StatusPort != 15020 {
		t.Errorf("PROXY_CONFIG is %s", text)
	}
}

func TestClusterAndLocality(t *testing.T) {
	for _, tc := range []struct{ labels, env, cluster, region string }{
		{"", "", "istio-proxy.default", ""},
		{"", "ISTIO_META_WORKLOAD_NAME=w", "w.default", ""},
		{`app.kubernetes.io/name="k"`, "ISTIO_META_WORKLOAD_NAME=w", "k.default", ""},
		{`service.istio.io/canonical-name="c"`, "", "c.default", ""},
		{"", "PROXY_CONFIG=serviceCluster: mine", "mine", ""},
		{`app="a"`, "PROXY_CONFIG=tracingServiceName: APP_LABEL_AND_NAMESPACE", "a.default", ""},
		{"app=\"a\"\napp.kubernetes.io/name=\"k\"", "PROXY_CONFIG=tracingServiceName: CANONICAL_NAME_ONLY", "k", ""},
		{"", "PROXY_CONFIG=tracingServiceName: CANONICAL_NAME_ONLY", "istio-proxy.default", ""},
		{"", "PROXY_CONFIG=tracingServiceName: CANONICAL_NAME_AND_NAMESPACE", "istio-proxy.default", ""},
		{`istio-locality="r1.z1"`, "", "istio-proxy.default", "r1"},
		{`topology.istio.io/locality="r.1/z"`, "", "istio-proxy.default", "r.1"},
	} {
		cfg, _ := mustLoad(t, Sources{Environ: []string{tc.env}, ReadFile: files(map[string]string{labelsFile: tc.labels})})
		if cfg.Node.Cluster != tc.cluster || cfg.Node.Region != tc.region {
			t.Errorf("%+v: cluster %q, region %q", tc, cfg.Node.Cluster, cfg.Node.Region)
		}
	}
}

// TestMetadataForms: what istiod reads into a field has the type that it reads, and what has
// another is named, since istiod would refuse the node.
func TestMetadataForms(t *testing.T) {
	for _, tc := range []struct {
		env  string
		key  string
		want any // nil: not there; an error: what is said
	}{
		{"ISTIO_META_DNS_AUTO_ALLOCATE=1", "DNS_AUTO_ALLOCATE", "true"},
		{`ISTIO_METAJSON_A={"ENABLE_SELF_DISCOVERY":true}`, "ENABLE_SELF_DISCOVERY", "true"},
		{"ISTIO_META_ENABLE_HBONE=", "ENABLE_HBONE", nil},
		{"ISTIO_META_ENABLE_HBONE=true", "METADATA_DISCOVERY", "true"},
		{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS=true", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", "true"},
		{"EXIT_ON_ZERO_ACTIVE_CONNECTIONS=false", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS", nil},
		{"ISTIO_META_ENVOY_STATUS_PORT=1", "ENVOY_STATUS_PORT", 15021},
		{"ISTIO_META_POD_PORTS=[ ]", "POD_PORTS", "[ ]"},
		{"ISTIO_META_POD_PORTS=", "POD_PORTS", nil},
		{"ISTIO_META_HTTP10=", "HTTP10", ""},
		{"PROXY_CONFIG=controlPlaneAuthPolicy: NONE", "PILOT_SAN", nil},
		{"PROXY_CONFIG=discoveryAddress: localhost:15012", "PILOT_SAN", []any{"istiod.istio-system.svc"}},
		{"PROXY_CONFIG=proxyMetadata: {DNS_PROXY_ADDR: 'localhost:1'}", "DNS_PROXY_ADDR", nil},
		{"ISTIO_META_ENABLE_SELF_DISCOVERY=maybe", "", errors.New(`environment: ISTIO_META_ENABLE_SELF_DISCOVERY="maybe": want true or false`)},
		{`ISTIO_METAJSON_A={"NETWORK":5}`, "", errors.New(`environment: ISTIO_METAJSON_A="5": want a string for NETWORK, as istiod reads it`)},
		{`ISTIO_METAJSON_A={"ANNOTATIONS":{"a":5}}`, "", errors.New(`environment: ISTIO_METAJSON_A="{\"a\":5}": want a JSON object of strings`)},
		{`ISTIO_METAJSON_LABELS={"a":5}`, "", errors.New(`environment: ISTIO_METAJSON_LABELS="{\"a\":5}": want a JSON object of strings`)},
		{"ISTIO_META_POD_PORTS=80", "", errors.New(`environment: ISTIO_META_POD_PORTS="80": want the ports as a JSON array in a string, such as [{"containerPort":8080,"protocol":"TCP"}]`)},
	} {
		cfg, _, err := Load(Sources{Environ: []string{tc.env}})
		switch want := tc.want.(type) {
		case error:
			if err == nil || err.Error() != want.Error() {
				t.Errorf("%s: error %v, want %v", tc.env, err, want)
			}
		default:
			if err != nil {
				t.Errorf("%s: %v", tc.env, err)
			} else if diff := cmp.Diff(want, cfg.Node.Metadata[tc.key]); diff != "" {
				t.Errorf("%s: %s (-want +got):\n%s", tc.env, tc.key, diff)
			}
		}
	}
}

// TestToken: namespace and service account are the token's where nobody says them, and a
// difference, at which istiod refuses the node, is named.
func TestToken(t *testing.T) {
	token := "e30." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"system:serviceaccount:shop:web"}`)) + ".c2ln\n"
	src := Sources{Environ: []string{"ISTIO_META_ISTIO_VERSION=1.32.0"}, ReadFile: files(map[string]string{tokenFile: token})}
	cfg, warnings := mustLoad(t, src)
	if cfg.Node.Metadata["NAMESPACE"] != "shop" || cfg.Node.Metadata["SERVICE_ACCOUNT"] != "web" || cfg.Domain != "shop.svc.cluster.local" || len(warnings) > 0 {
		t.Errorf("node %v, domain %s, warnings %v", cfg.Node.Metadata, cfg.Domain, warnings)
	}
	src.Environ = append(src.Environ, "POD_NAMESPACE=other", "SERVICE_ACCOUNT=web")
	cfg, warnings = mustLoad(t, src)
	want := `environment: POD_NAMESPACE: istiod refuses this node: it is "other" here and "shop" in the token`
	if len(warnings) != 1 || warnings[0].String() != want || cfg.PodNamespace != "other" {
		t.Errorf("namespace %s, warnings %v", cfg.PodNamespace, warnings)
	}
	src.Flags = map[string]string{"configDir": "x"}
	if _, warnings = mustLoad(t, src); len(warnings) > 0 {
		t.Errorf("on files alone: warnings %v", warnings)
	}
	for _, bad := range []string{"", "a.b", "a.%.c", "a.e30.c", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"somebody"}`)) + ".c"} {
		cfg, _ := mustLoad(t, Sources{ReadFile: files(map[string]string{tokenFile: bad})})
		if cfg.PodNamespace != "default" || cfg.ServiceAccount != "" {
			t.Errorf("token %q: %s, %s", bad, cfg.PodNamespace, cfg.ServiceAccount)
		}
	}
}

// TestVersionForIstiod: it is Istio's, never the agent's, and one line says so.
func TestVersionForIstiod(t *testing.T) {
	cfg, warnings := mustLoad(t, Sources{})
	if cfg.Node.Metadata["ISTIO_VERSION"] != istioVersion || len(warnings) != 1 || warnings[0].key != "ISTIO_META_ISTIO_VERSION" {
		t.Errorf("version %v, warnings %v", cfg.Node.Metadata["ISTIO_VERSION"], warnings)
	}
}
