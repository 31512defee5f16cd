// Package compliance owns what a compliance policy (COMPLIANCE_POLICY) demands: of each TLS connection that the agent makes, of this
// build of the agent, and of Envoy's environment.
package compliance

import (
	"crypto/fips140"
	"crypto/tls"
	"errors"
	"fmt"
)

// Policy is one of those that Istio knows; the zero value demands nothing.
type Policy string

// The policies, by the names that Istio gives them.
const (
	FIPS2 Policy = "fips-140-2"
	FIPS3 Policy = "fips-140-3"
	PQC   Policy = "pqc" // key exchange that holds out against quantum computers
)

// Parse reads the name of a policy; nothing is none.
func Parse(name string) (Policy, error) {
	switch p := Policy(name); p {
	case "", FIPS2, FIPS3, PQC:
		return p, nil
	}
	return "", fmt.Errorf("want %s, %s or %s, or nothing", FIPS2, FIPS3, PQC)
}

func (p Policy) fips() bool { return p == FIPS2 || p == FIPS3 }

// Restrict narrows what a TLS connection may use down to what the policy allows (Istio's choices). The cipher suites are those of
// TLS 1.2: Go has no choice of those of 1.3, of which a build with a FIPS module leaves out what is not approved.
func (p Policy) Restrict(c *tls.Config) {
	if p.fips() {
		c.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		}
	}
	switch p {
	case FIPS2:
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		c.CurvePreferences = []tls.CurveID{tls.CurveP256}
	case FIPS3:
		c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS13
		c.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384}
	case PQC:
		c.MinVersion, c.MaxVersion = tls.VersionTLS13, tls.VersionTLS13
		c.CurvePreferences = []tls.CurveID{tls.X25519MLKEM768}
	}
}

// CheckBuild says why this program may not serve under the policy: those of FIPS want a cryptographic module that is frozen, as the
// validation is of one, and in force.
func (p Policy) CheckBuild() error { return p.checkModule(fips140.Version(), fips140.Enabled()) }

// unfrozen is the module's version in a build that has the toolchain's own code.
const unfrozen = "latest"

func (p Policy) checkModule(version string, enabled bool) error {
	switch {
	case !p.fips():
		return nil
	case version == unfrozen:
		return errors.New("this build of pilot-agent has no FIPS 140 module: use one that `make build-fips` makes, or take the policy away")
	case !enabled:
		return fmt.Errorf("the FIPS 140 module %s of this build is turned off: take fips140=off out of GODEBUG", version)
	}
	return nil
}

// EnvoyEnviron is what Envoy's environment has besides: Envoy's Google gRPC client has its cipher suites from nowhere else.
func (p Policy) EnvoyEnviron() []string {
	if !p.fips() {
		return nil
	}
	return []string{"GRPC_SSL_CIPHER_SUITES=ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384"}
}
