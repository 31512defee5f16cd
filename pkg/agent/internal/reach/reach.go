// Package reach owns how the settings say that istiod and its certificate authority are reached, and who the agent is there.
package reach

import (
	"path/filepath"
	"strings"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/istiod"
	"understudy.mesh/pkg/security"
)

// Istiod is the way to istiod's configuration.
func Istiod(c *config.Config) istiod.Dial {
	d := common(c)
	d.Address, d.Plain, d.ServerName = c.DiscoveryAddress, istiod.IsPlain(c.DiscoveryAddress, !c.ControlPlaneMutualTLS), c.IstiodSAN
	d.WholeStates = !c.DeltaXDS
	addHeaders(&d, c.XDSHeaders)
	d.Roots = []string{istiod.MountedRoot}
	switch {
	case c.ProvCert != "":
		d.Roots = append(d.Roots, filepath.Join(c.ProvCert, security.RootFile))
	case c.FileMountedCerts:
		if root := clientFile(c, "ROOT_CERT"); root != "" {
			d.Roots = append(d.Roots, root)
		}
	}
	d.Roots = append(d.Roots, istiod.MeshRoot)
	if c.XDSRootCA != "" {
		d.Roots = []string{c.XDSRootCA}
	}
	return d
}

// CA is the way to the certificate authority.
func CA(c *config.Config) istiod.Dial {
	d := common(c)
	d.Address = c.CAAddress
	if d.Address == "" {
		d.Address, d.ServerName = c.DiscoveryAddress, c.IstiodSAN
	}
	d.Plain = strings.HasSuffix(d.Address, config.PlainCA)
	addHeaders(&d, c.CAHeaders)
	switch {
	case c.CARootCA != "":
		d.Roots = []string{c.CARootCA}
	case c.CertProvider == "custom":
		d.Roots = []string{istiod.MountedRoot}
	case c.ProvCert != "":
		d.Roots = []string{filepath.Join(c.ProvCert, security.RootFile)}
	case c.CertProvider == "none":
		// Nobody knows its roots, and each attempt says so.
	default:
		d.Roots = []string{istiod.MeshRoot}
	}
	return d
}

// common is what both ways have: the agent's own identity, and what keeps a connection alive.
func common(c *config.Config) istiod.Dial {
	d := istiod.Dial{
		Tokens: []string{istiod.Token}, Headers: map[string]string{},
		KeepaliveTime: c.KeepaliveInterval, KeepaliveTimeout: c.KeepaliveTimeout, MaxMessage: int(c.MaxResponse),
		Compliance: c.CompliancePolicy,
	}
	if c.ClusterID != "" {
		d.Headers["ClusterID"] = c.ClusterID
	}
	if c.FirstPartyJWT {
		d.Tokens = append(d.Tokens, istiod.AccountToken)
	}
	switch {
	case c.ProvCert != "":
		d.CertChain, d.Key = filepath.Join(c.ProvCert, security.ChainFile), filepath.Join(c.ProvCert, security.KeyFile)
	case c.FileMountedCerts:
		d.CertChain, d.Key = clientFile(c, "CERT_CHAIN"), clientFile(c, "KEY")
	}
	return d
}

func addHeaders(d *istiod.Dial, headers map[string]string) {
	for name, value := range headers {
		d.Headers[name] = value
	}
}

// clientFile is a file of the agent's own certificate, as the node's metadata says.
func clientFile(c *config.Config, name string) string {
	path, _ := c.Node.Metadata["TLS_CLIENT_"+name].(string)
	return path
}
