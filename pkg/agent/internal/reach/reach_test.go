package reach

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"understudy.mesh/internal/compliance"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/istiod"
)

// TestIstiod says where the settings find roots, tokens and the client's certificate, as Istio's agent would.
func TestIstiod(t *testing.T) {
	for name, tc := range map[string]struct {
		environ []string
		want    func(*istiod.Dial)
	}{
		"defaults":             {nil, func(*istiod.Dial) {}},
		"plain text":           {[]string{"PROXY_CONFIG={controlPlaneAuthPolicy: NONE, discoveryAddress: 'i:15010'}"}, func(d *istiod.Dial) { d.Plain, d.Address = true, "i:15010" }},
		"15012 is never plain": {[]string{"PROXY_CONFIG={controlPlaneAuthPolicy: NONE}"}, func(*istiod.Dial) {}},
		"a root of its own":    {[]string{"XDS_ROOT_CA=/ca.pem"}, func(d *istiod.Dial) { d.Roots = []string{"/ca.pem"} }},
		"another name":         {[]string{"ISTIOD_SAN=san"}, func(d *istiod.Dial) { d.ServerName = "san" }},
		"headers":              {[]string{"XDS_HEADER_X-A=b", "ISTIO_META_CLUSTER_ID=c1"}, func(d *istiod.Dial) { d.Headers = map[string]string{"X-A": "b", "ClusterID": "c1"} }},
		"the account's token":  {[]string{"JWT_POLICY=first-party-jwt"}, func(d *istiod.Dial) { d.Tokens = append(d.Tokens, istiod.AccountToken) }},
		"whole states":         {[]string{"ISTIO_DELTA_XDS=false"}, func(d *istiod.Dial) { d.WholeStates = true }},
		"a size":               {[]string{"UNDERSTUDY_ISTIOD_MAX_RESPONSE=1000"}, func(d *istiod.Dial) { d.MaxMessage = 1000 }},
		"a policy":             {[]string{"COMPLIANCE_POLICY=pqc"}, func(d *istiod.Dial) { d.Compliance = compliance.PQC }},
		"provisioned": {[]string{"PROV_CERT=/prov"}, func(d *istiod.Dial) {
			d.CertChain, d.Key, d.Roots = "/prov/cert-chain.pem", "/prov/key.pem", slices.Insert(d.Roots, 1, "/prov/root-cert.pem")
		}},
		"files of the metadata": {[]string{"FILE_MOUNTED_CERTS=true", "ISTIO_META_TLS_CLIENT_CERT_CHAIN=/c", "ISTIO_META_TLS_CLIENT_KEY=/k", "ISTIO_META_TLS_CLIENT_ROOT_CERT=/r"}, func(d *istiod.Dial) { d.CertChain, d.Key, d.Roots = "/c", "/k", slices.Insert(d.Roots, 1, "/r") }},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := config.Load(config.Sources{Environ: tc.environ})
			if err != nil {
				t.Fatal(err)
			}
			want := istiod.Dial{
				Address: "istiod.istio-system.svc:15012", Roots: []string{istiod.MountedRoot, istiod.MeshRoot}, Tokens: []string{istiod.Token}, Headers: map[string]string{},
				KeepaliveTime: 30e9, KeepaliveTimeout: 10e9, MaxMessage: 256 << 20,
			}
			tc.want(&want)
			if diff := cmp.Diff(want, Istiod(c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestCA says the same of the certificate authority, whose roots have another precedence.
func TestCA(t *testing.T) {
	for name, tc := range map[string]struct {
		environ []string
		want    func(*istiod.Dial)
	}{
		"defaults":             {want: func(*istiod.Dial) {}},
		"istiod's name":        {environ: []string{"ISTIOD_SAN=san"}, want: func(d *istiod.Dial) { d.ServerName = "san" }},
		"another address":      {environ: []string{"CA_ADDR=ca:1234", "ISTIOD_SAN=san"}, want: func(d *istiod.Dial) { d.Address = "ca:1234" }},
		"plain text":           {environ: []string{"CA_ADDR=i:15010"}, want: func(d *istiod.Dial) { d.Address, d.Plain = "i:15010", true }},
		"a root of its own":    {environ: []string{"CA_ROOT_CA=/ca.pem", "PILOT_CERT_PROVIDER=custom", "XDS_ROOT_CA=/x.pem"}, want: func(d *istiod.Dial) { d.Roots = []string{"/ca.pem"} }},
		"the system's roots":   {environ: []string{"CA_ROOT_CA=SYSTEM"}, want: func(d *istiod.Dial) { d.Roots = []string{"SYSTEM"} }},
		"custom goes first":    {environ: []string{"PILOT_CERT_PROVIDER=custom", "PROV_CERT=/p"}, want: func(d *istiod.Dial) { provisioned(d); d.Roots = []string{istiod.MountedRoot} }},
		"provisioned":          {environ: []string{"PILOT_CERT_PROVIDER=none", "PROV_CERT=/p"}, want: func(d *istiod.Dial) { provisioned(d); d.Roots = []string{"/p/root-cert.pem"} }},
		"of the cluster":       {environ: []string{"PILOT_CERT_PROVIDER=k8s.io/signer"}, want: func(*istiod.Dial) {}},
		"nobody's":             {environ: []string{"PILOT_CERT_PROVIDER=none"}, want: func(d *istiod.Dial) { d.Roots = nil }},
		"headers of its own":   {environ: []string{"CA_HEADER_x-a=1", "XDS_HEADER_x-b=2", "ISTIO_META_CLUSTER_ID=c1"}, want: func(d *istiod.Dial) { d.Headers = map[string]string{"x-a": "1", "ClusterID": "c1"} }},
		"not the roots of XDS": {environ: []string{"XDS_ROOT_CA=/x.pem"}, want: func(*istiod.Dial) {}},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, err := config.Load(config.Sources{Environ: tc.environ})
			if err != nil {
				t.Fatal(err)
			}
			want := istiod.Dial{
				Address: "istiod.istio-system.svc:15012", Roots: []string{istiod.MeshRoot}, Tokens: []string{istiod.Token}, Headers: map[string]string{},
				KeepaliveTime: 30e9, KeepaliveTimeout: 10e9, MaxMessage: 256 << 20,
			}
			tc.want(&want)
			if diff := cmp.Diff(want, CA(c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func provisioned(d *istiod.Dial) { d.CertChain, d.Key = "/p/cert-chain.pem", "/p/key.pem" }
