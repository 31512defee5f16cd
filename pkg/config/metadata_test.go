package config

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"encoding/json"
)

func TestNode(t *testing.T) {
	cfg, _ := mustLoad(t, Sources{
		Version: "1.2.3",
		NodeIPs: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:10.0.0.2")},
		Environ: []string{
			"POD_NAME=web-1", "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=web", "INSTANCE_IP=10.0.0.2",
			"ISTIO_META_NODE_NAME=n1", "ISTIO_META_NAMESPACE=forged", "ISTIO_META_POD_PORTS=[{\"containerPort\":80}]",
			`ISTIO_METAJSON_LABELS={"app":"static","only":"static"}`, "ISTIO_META_DNS_CAPTURE=true",
			`ISTIO_METAJSON_MORE={"EXTRA":{"a":1}}`, "PROXY_CONFIG=proxyMetadata: {ISTIO_META_NODE_NAME: low, ISTIO_META_OWNER: o}",
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
			"NAME": "web-1", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "ISTIO_VERSION": "1.2.3",
			"INSTANCE_IPS": "10.0.0.2,10.0.0.1", "NODE_NAME": "n1", "OWNER": "o", "POD_PORTS": `[{"containerPort":80}]`,
			"LABELS":        map[string]any{"app": "web", "only": "static", "topology.istio.io/locality": "r.z.s"},
			"STATIC_LABELS": map[string]any{"app": "static", "only": "static"},
			"ANNOTATIONS":   map[string]any{"a": "b"},
			"app":           "static", "only": "static", "EXTRA": map[string]any{"a": 1.0},
			"DNS_CAPTURE": "true", "DNS_PROXY_ADDR": "127.0.0.1:15053", "PILOT_SAN": []any{"istiod.istio-system.svc"},
			"ENVOY_STATUS_PORT": "15021", "ENVOY_PROMETHEUS_PORT": "15090",
			"ENVOY_SKIP_DEPRECATED_LOGS": "true", "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "false",
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
		{`istio-locality="r1.z1"`, "", "istio-proxy.default", "r1"},
		{`topology.istio.io/locality="r.1/z"`, "", "istio-proxy.default", "r.1"},
	} {
		cfg, _ := mustLoad(t, Sources{Environ: []string{tc.env}, ReadFile: files(map[string]string{labelsFile: tc.labels})})
		if cfg.Node.Cluster != tc.cluster || cfg.Node.Region != tc.region {
			t.Errorf("%+v: cluster %q, region %q", tc, cfg.Node.Cluster, cfg.Node.Region)
		}
	}
}
