package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// caHeaderPrefix begins the variables that become headers of every call to the certificate authority.
	caHeaderPrefix = "CA_HEADER_"
	// istiodCA is the one certificate authority that Istio's agent speaks to.
	istiodCA = "Citadel"
	// PlainCA is what the address of a certificate authority without TLS ends in (Istio's).
	PlainCA = ":15010"
	// leastRSABits is Istio's least length of an RSA key, and mostRSABits what a signature stays cheap with.
	leastRSABits, mostRSABits = 2048, 8192
)

// certificateSettings say where the workload's certificate comes from, and what it is like.
func certificateSettings() []Setting {
	return []Setting{
		{name: "trustDomain", Flag: "trust-domain", Env: "TRUST_DOMAIN", mesh: "trustDomain", Kind: String, Default: "cluster.local", field: "TrustDomain",
			Doc: "SPIFFE trust domain: the workload is spiffe://<trust domain>/ns/<namespace>/sa/<service account>"},
		{name: "caAddress", Env: "CA_ADDR", Kind: HostPort, Effect: UnderIstiod, field: "CAAddress",
			Doc: "Address of the certificate authority, plain text where it ends in :15010; discoveryAddress unless set, with istiodSAN"},
		{name: "caProvider", Env: "CA_PROVIDER", Kind: String, Default: istiodCA, Effect: UnderIstiod,
			Doc: "Protocol of the certificate authority; there is none but Citadel, istiod's"},
		{name: "caRootCA", Env: "CA_ROOT_CA", Kind: String, Effect: UnderIstiod, field: "CARootCA",
			Doc: "File of the roots that sign the authority's certificate, or SYSTEM for those of the operating system; unset: what pilotCertProvider says"},
		{name: "pilotCertProvider", Env: "PILOT_CERT_PROVIDER", Kind: String, Default: "istiod", Effect: UnderIstiod, field: "CertProvider",
			Doc: "Where the roots for the authority are: custom is ./etc/certs/root-cert.pem, none is nowhere but in caRootCA and provCert, any other is provCert's or else ./var/run/secrets/istio/root-cert.pem"},
		{name: "certSigner", Env: "ISTIO_META_CERT_SIGNER", Kind: String, Effect: UnderIstiod, field: "CertSigner",
			Doc: "Signer that the authority is asked to have the certificate signed by"},
		{name: "secretTTL", Env: "SECRET_TTL", Kind: Lifetime, Default: "24h", Effect: UnderIstiod, field: "CertLifetime",
			Doc: "How long a certificate is to be valid; the authority may give less"},
		{name: "secretGracePeriodRatio", Env: "SECRET_GRACE_PERIOD_RATIO", Kind: Ratio, Default: "0.5", Effect: UnderIstiod, field: "CertGrace",
			Doc: "The part of a certificate's life, at its end, in which another one is asked for"},
		{name: "secretGracePeriodRatioJitter", Env: "SECRET_GRACE_PERIOD_RATIO_JITTER", Kind: Ratio, Default: "0.01", Effect: UnderIstiod, field: "CertGraceJitter",
			Doc: "By how much that part is longer or shorter at random, so that pods do not ask together"},
		{name: "rsaKeySize", Env: "WORKLOAD_RSA_KEY_SIZE", Kind: Count, Default: "2048", Effect: UnderIstiod, field: "RSABits",
			Doc: "Bits of an RSA key, 2048 to 8192"},
		{name: "eccSignatureAlgorithm", Env: "ECC_SIGNATURE_ALGORITHM", Kind: String, Effect: UnderIstiod, field: "ECCAlgorithm",
			Doc: "ECDSA makes the key one of an elliptic curve, not an RSA key"},
		{name: "eccCurve", Env: "ECC_CURVE", Kind: String, Default: "P256", Effect: UnderIstiod, field: "ECCCurve",
			Doc: "The curve: P256 or P384"},
		{name: "pkcs8Key", Env: "PKCS8_KEY", Kind: Bool, Default: "false", Effect: UnderIstiod, field: "PKCS8Key",
			Doc: "Give the key the form PKCS #8"},
		{name: "outputCerts", Env: "OUTPUT_CERTS", Kind: String, Effect: UnderIstiod, field: "OutputCerts",
			Doc: "Directory that key.pem, cert-chain.pem and root-cert.pem are written to as well, for an application that reads them"},
		{name: "fileDebounce", Env: "FILE_DEBOUNCE_DURATION", Kind: Duration, Default: "100ms", Effect: UnderIstiod, field: "FileDebounce",
			Doc: "How long after a first change files of certificates are read: they are changed one by one"},
		{name: "caCRL", Env: "PILOT_ENABLE_CA_CRL", Kind: Bool, Default: "true", Effect: UnderIstiod, field: "CACRL",
			Doc: "Refuse certificates that ./var/run/secrets/istio/crl/ca-crl.pem has, if it is there"},
		{name: "oldRoots", Env: "UNDERSTUDY_OLD_ROOTS", Kind: RootsLife, Default: "leaf", Effect: UnderIstiod, field: "OldRoots",
			Doc: "How long a root is trusted that the authority has replaced: leaf is a peer can have no certificate of it any more; 0s drops it at once, as one that was stolen"},
		{name: "keepCertificate", Env: "UNDERSTUDY_KEEP_CERTIFICATE", Kind: KeepMode, Default: "auto", Effect: UnderIstiod, field: "KeepCertificate",
			Doc: "auto keeps the certificate with its key in configPath over a restart of the container, where that is in memory (an emptyDir of medium Memory); off keeps it nowhere"},
	}
}

// deriveCertificate fills what the variables of the certificate authority say together.
func (l *loader) deriveCertificate(c *Config) {
	c.CAHeaders = l.headers(caHeaderPrefix)
	c.InKubernetes = l.env["KUBERNETES_SERVICE_HOST"] != ""
	if c.ECCAlgorithm != "" && c.ECCCurve != "P256" && c.ECCCurve != "P384" {
		source, key := l.origin("eccCurve")
		l.warn(source, key, shown(c.ECCCurve)+" is no curve of Istio's, which takes P256 then; want P256 or P384")
		c.ECCCurve = "P256"
	}
}

// checkCertificate refuses what no certificate could be had with; files need none.
func (l *loader) checkCertificate(c *Config) {
	if c.ConfigDir != "" {
		return
	}
	if provider := l.values["caProvider"].value; provider != istiodCA {
		l.reject("caProvider", provider.(string), "want Citadel, or none of this variable: no other authority's protocol is spoken here")
	}
	if c.ECCAlgorithm != "" && c.ECCAlgorithm != "ECDSA" {
		l.reject("eccSignatureAlgorithm", c.ECCAlgorithm, "want ECDSA, or none of this variable for an RSA key")
	}
	if c.RSABits < leastRSABits || c.RSABits > mostRSABits {
		l.reject("rsaKeySize", strconv.Itoa(c.RSABits), fmt.Sprintf("want %d to %d bits", leastRSABits, mostRSABits))
	}
	if c.CertLifetime < time.Second {
		l.reject("secretTTL", c.CertLifetime.String(), "want at least 1s: the authority counts whole seconds")
	}
	name, address := "caAddress", c.CAAddress
	if address == "" {
		name, address = "discoveryAddress", c.DiscoveryAddress
	}
	if strings.HasSuffix(address, PlainCA) {
		source, key := l.origin(name)
		l.warn(source, key, "the certificate authority at "+shown(address)+" is asked in plain text, and no token is sent that way: one that wants a token gives no certificate; set CA_ADDR to its port with TLS, 15012 at istiod")
	}
	if c.ProvCert != "" && c.FileMountedCerts {
		l.reject("provCert", c.ProvCert, "want none beside FILE_MOUNTED_CERTS: one of them says which certificate istiod knows the agent by")
	}
}

// headers are what the variables that begin with prefix say, by the rest of their name.
func (l *loader) headers(prefix string) map[string]string {
	headers := map[string]string{}
	for name, value := range l.env {
		if header, ok := strings.CutPrefix(name, prefix); ok && header != "" {
			headers[header] = value
		}
	}
	return headers
}
