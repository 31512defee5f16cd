package config

import (
	"maps"
	"strings"
	"testing"
	"time"
)

// TestCertificate reads the variables of Istio's agent that are about the workload's certificate.
func TestCertificate(t *testing.T) {
	load := func(environ ...string) (*Config, string) {
		t.Helper()
		c, warnings, err := Load(Sources{Environ: environ})
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, w := range warnings {
			text.WriteString(w.String() + "\n")
		}
		return c, text.String()
	}
	c, _ := load()
	if c.TrustDomain != "cluster.local" || c.CertProvider != "istiod" || c.CertLifetime != 24*time.Hour || c.CertGrace != 0.5 ||
		c.CertGraceJitter != 0.01 || c.RSABits != 2048 || c.ECCAlgorithm != "" || c.FileDebounce != 100*time.Millisecond || !c.CACRL || !c.KeepCertificate || c.InKubernetes || c.OldRoots >= 0 {
		t.Errorf("the defaults are not Istio's: %+v", c)
	}
	for _, v := range c.Effective() {
		if v.Name == "oldRoots" && v.Value != "leaf" {
			t.Errorf("oldRoots is shown as %s", v.Value)
		}
	}

	c, warned := load("CA_HEADER_x-a=1", "CA_HEADER_=2", "XDS_HEADER_x-b=3", "SECRET_TTL=2160h", "ECC_SIGNATURE_ALGORITHM=ECDSA", "ECC_CURVE=P521", "UNDERSTUDY_OLD_ROOTS=0s", "UNDERSTUDY_KEEP_CERTIFICATE=off", "KUBERNETES_SERVICE_HOST=10.0.0.1")
	if want := map[string]string{"x-a": "1"}; !maps.Equal(c.CAHeaders, want) {
		t.Errorf("headers for the authority %v, want %v", c.CAHeaders, want)
	}
	if c.KeepCertificate || !c.InKubernetes {
		t.Errorf("kept: %v, in Kubernetes: %v", c.KeepCertificate, c.InKubernetes)
	}
	if c.CertLifetime != 2160*time.Hour || c.OldRoots != 0 {
		t.Errorf("lifetime %v, old roots %v", c.CertLifetime, c.OldRoots)
	}
	if c.ECCCurve != "P256" || !strings.Contains(warned, `ECC_CURVE: "P521" is no curve of Istio's`) {
		t.Errorf("a curve that Istio lacks is %s, with the warnings\n%s", c.ECCCurve, warned)
	}
	for environ, plain := range map[string]bool{"CA_ADDR=ca:15010": true, "CA_ADDR=ca:15012": false, "PROXY_CONFIG={discoveryAddress: 'istiod:15010'}": true} {
		if _, warned := load(environ); strings.Contains(warned, "no token is sent") != plain {
			t.Errorf("%s: the warnings are\n%s", environ, warned)
		}
	}
	// Files need no certificate: what would refuse a pod of a mesh is a warning there.
	if _, warned := load("CA_PROVIDER=GoogleCA", "UNDERSTUDY_CONFIG_DIR=/d"); !strings.Contains(warned, "CA_PROVIDER") {
		t.Errorf("no word of CA_PROVIDER:\n%s", warned)
	}
}
