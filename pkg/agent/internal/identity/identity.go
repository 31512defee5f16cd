// Package identity owns who the workload is in its mesh: its certificate, and the server from which this generation's Envoy
// has it.
package identity

import (
	"context"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/pkg/agent/internal/reach"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/security"
	"understudy.mesh/pkg/security/credential"
	"understudy.mesh/pkg/security/sds"
	"understudy.mesh/pkg/status"
)

// taskCertificate is the readiness task of an Envoy that waits for its certificate.
const taskCertificate = "certificate"

// stateIdentity is the component of a hand-off that has the workload's certificate: security.Manager.Export.
const stateIdentity = "identity"

// Files that a pod mounts, relative to the working directory as in Istio.
const (
	mountedIdentity = "./var/run/secrets/workload-spiffe-credentials" // goes before mountedCerts
	mountedCerts    = "./etc/certs"
	crlFile         = "./var/run/secrets/istio/crl/ca-crl.pem"
)

// keptFile is where, in configPath, the certificate outlives a restart of the container.
const keptFile = "identity.json"

// Config says what an Identity is made of.
type Config struct {
	Settings *config.Config
	// Listener is where Envoy asks for secrets; Run closes it.
	Listener net.Listener
	// External says that another server of this pod has the certificate: only files are served then.
	External bool
	Ready    *status.Readiness
	// Served is closed once the pod has been ready.
	Served <-chan struct{}
	// Changed is called when readiness may say otherwise.
	Changed func()
	Log     *slog.Logger
}

// Identity is made by New.
type Identity struct {
	c       Config
	manager *security.Manager
	server  *sds.Server
}

// New checks c, and starts nothing.
func New(c Config) (*Identity, error) {
	s := c.Settings
	m := request(s, c.Log)
	m.Grace, m.GraceJitter, m.OldRoots = s.CertGrace, s.CertGraceJitter, s.OldRoots
	m.Mounted, m.Debounce, m.Output, m.OutputMode = []string{mountedIdentity, mountedCerts}, s.FileDebounce, s.OutputCerts, outputMode(s)
	if s.CACRL {
		m.CRL = crlFile
	}
	if s.KeepCertificate {
		m.Keep = filepath.Join(s.ConfigPath, keptFile)
	}
	if c.External || s.FileMountedCerts {
		m.Connect = nil
	}
	i := &Identity{c: c}
	var err error
	if i.manager, err = security.NewManager(m); err != nil {
		return nil, err
	}
	i.server = sds.New(c.Listener, i.manager, i.waiting, c.Log)
	return i, nil
}

// request is what the authority is asked for.
func request(s *config.Config, log *slog.Logger) security.Config {
	dial := reach.CA(s)
	return security.Config{
		TrustDomain: s.TrustDomain, Namespace: s.PodNamespace, ServiceAccount: s.ServiceAccount,
		Connect: dial.Connector(log), CA: dial.Address, Headers: dial.Headers, Signer: s.CertSigner,
		Lifetime: s.CertLifetime, Key: keyKind(s), Log: log,
	}
}

// outputMode lets every container of a pod read the files of OUTPUT_CERTS, whatever its user, as Istio does; elsewhere nobody
// but the agent's own user.
func outputMode(c *config.Config) fs.FileMode {
	if c.InKubernetes {
		return 0o644
	}
	return 0o600
}

func keyKind(c *config.Config) credential.Kind {
	kind := credential.Kind{RSABits: c.RSABits, PKCS8: c.PKCS8Key}
	if c.ECCAlgorithm != "" {
		kind.Curve = c.ECCCurve
	}
	return kind
}

// Run obtains the certificate, renews it, and serves it until ctx ends.
func (i *Identity) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return i.manager.Run(ctx) })
	group.Go(func() error { return i.server.Run(ctx) })
	return group.Wait()
}

// Retire leaves it to a successor to ask for certificates and to write them. What Envoy has serves on.
func (i *Identity) Retire() { i.manager.Retire() }

// End closes Envoy's streams in good order.
func (i *Identity) End() { i.server.End() }

// SetBundle replaces the roots that the mesh's configuration adds, in PEM; err says which are none.
func (i *Identity) SetBundle(roots []string) error { return i.manager.SetBundle(roots) }

// Samples are the metrics.
func (i *Identity) Samples() []status.Sample {
	return append(i.manager.Samples(), i.server.Samples()...)
}

// DebugPages are pages of the status port, for loopback only.
func (i *Identity) DebugPages() map[string]http.Handler { return i.manager.DebugPages() }

// Overview is what of it fits into a line.
func (i *Identity) Overview() *overview.Certificate { return i.manager.Overview() }

// Export is what a successor is told, by component: with it, an upgrade takes no certificate of its own.
func (i *Identity) Export() map[string][]byte {
	state := map[string][]byte{}
	if data := i.manager.Export(); data != nil {
		state[stateIdentity] = data
	}
	return state
}

// Import takes over what a predecessor exports, before Run.
func (i *Identity) Import(state map[string][]byte) { i.manager.Import(state[stateIdentity]) }

// waiting keeps a pod from becoming ready whose Envoy waits for the workload's certificate or its roots, in the words of who
// does not give them: its listeners would serve nobody. Envoy itself waits for those of a file for 15 s at most, and goes on
// without, as it does under Istio's agent; so no pod is kept by a file that is nowhere.
//
// Once the pod has been ready, a secret that is asked for is no reason to take it out of its service: Envoy keeps what it
// has in place of what still waits.
func (i *Identity) waiting(missing map[string]error) {
	reason, waits := missing[security.Workload]
	if !waits {
		reason, waits = missing[security.Roots]
	}
	switch {
	case !waits:
		i.c.Ready.Done(taskCertificate)
		i.c.Changed()
	case !i.served():
		i.c.Ready.Pending(taskCertificate, "Envoy waits for the workload's certificate: "+reason.Error())
	}
}

func (i *Identity) served() bool {
	select {
	case <-i.c.Served:
		return true
	default:
		return false
	}
}
