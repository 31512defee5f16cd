package istiod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"

	"understudy.mesh/internal/compliance"
)

const (
	// connectTimeout bounds connecting: name, TCP and TLS.
	connectTimeout = 10 * time.Second
	// window is the first flow-control window of a stream and of its connection, Istio's: gRPC's own, 64 KiB, makes a large
	// push wait for a round trip each.
	window = 1 << 20
	// plainPort is where istiod serves without TLS.
	plainPort = "15010"
	// localServerName is what istiod's certificate says where its address is this machine's (Istio's).
	localServerName = "istiod.istio-system.svc"
	// systemRoots stands for the roots of the operating system in place of a file.
	systemRoots = "SYSTEM"
)

// Files of a pod that istiod's clients read, relative to the working directory as in Istio.
const (
	MeshRoot     = "./var/run/secrets/istio/root-cert.pem" // what the control plane's own authority signs with
	MountedRoot  = "./etc/certs/root-cert.pem"             // goes before it, where it is there
	Token        = "./var/run/secrets/tokens/istio-token"  // of the service account, for the audience of istiod
	AccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"
)

// Dial says how istiod is reached. What names a file is read when it is needed, at each handshake and at each call: it may
// change at any time.
type Dial struct {
	Address string // host:port
	// Plain has no TLS, and no token.
	Plain bool
	// WholeStates asks for whole states of the configuration (SotW) instead of increments.
	WholeStates bool
	// ServerName is what istiod's certificate has to say; "" follows from Address.
	ServerName string
	// Roots are files of trusted roots, of which the first that is there counts; SYSTEM stands for the operating system's.
	Roots []string
	// CertChain and Key are files of the client's certificate; "": it has none, and is known by its token.
	CertChain, Key string
	// Tokens are files, of which the first that is there counts.
	Tokens []string
	// Headers go with each call.
	Headers map[string]string
	// KeepaliveTime and KeepaliveTimeout find a connection that is dead.
	KeepaliveTime, KeepaliveTimeout time.Duration
	// Compliance is a policy that TLS keeps.
	Compliance compliance.Policy
	// MaxMessage bounds a response in bytes.
	MaxMessage int
}

// IsPlain says whether a control plane is reached without TLS: only where its policy says so, and at the port that has none.
// 15012 is TLS whatever the policy says.
func IsPlain(address string, noAuth bool) bool {
	_, port, err := net.SplitHostPort(address)
	return noAuth && err == nil && port == plainPort
}

// Connector returns what gives a connection that has yet to be made. Whoever calls by it adds the metadata of Headers.
func (d Dial) Connector(log *slog.Logger) func() (*grpc.ClientConn, error) {
	return func() (*grpc.ClientConn, error) { return d.connect(log) }
}

// connect returns a connection that has yet to be made.
func (d *Dial) connect(log *slog.Logger) (*grpc.ClientConn, error) {
	options := []grpc.DialOption{
		grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: d.KeepaliveTime, Timeout: d.KeepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(d.MaxMessage)),
		grpc.WithDisableServiceConfig(),
		experimental.WithBufferPool(mem.NopBufferPool{}), // the buffers of a large response would stay in a pool for a while
	}
	if d.Plain {
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	} else {
		options = append(options,
			grpc.WithTransportCredentials(handshaker{credentials.NewTLS(nil), d.tlsConfig}),
			grpc.WithAuthority(d.serverName()), // by which gRPC checks the certificate
			grpc.WithPerRPCCredentials(bearer{d.Tokens, log}))
	}
	conn, err := grpc.NewClient("dns:///"+d.Address, options...)
	if err != nil {
		return nil, fmt.Errorf("discoveryAddress %s: %w", d.Address, err)
	}
	return conn, nil
}

// headers are the metadata of each call.
func (d *Dial) headers() []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(d.Headers)) {
		list = append(list, key, d.Headers[key])
	}
	return list
}

// handshaker makes a TLS configuration for each handshake.
type handshaker struct {
	credentials.TransportCredentials
	config func() (*tls.Config, error)
}

func (h handshaker) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := h.config()
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

func (h handshaker) Clone() credentials.TransportCredentials { return h }

// tlsConfig reads the files.
func (d *Dial) tlsConfig() (*tls.Config, error) {
	roots, err := d.roots()
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}
	if certificate := d.certificate(); certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	d.Compliance.Restrict(config)
	return config, nil
}

func (d *Dial) serverName() string {
	if d.ServerName != "" {
		return d.ServerName
	}
	host, _, err := net.SplitHostPort(d.Address)
	if err != nil {
		return d.Address
	}
	if strings.Contains(host, "localhost") {
		return localServerName
	}
	return host
}

// firstFile reads the first of some files that is there, and names it; "" is that none is. [systemRoots] is always there, and no file.
func firstFile(paths []string) (path string, text []byte, err error) {
	for _, path := range paths {
		if path == systemRoots {
			return path, nil, nil
		}
		text, err := os.ReadFile(path)
		if !errors.Is(err, fs.ErrNotExist) {
			return path, text, err
		}
	}
	return "", nil, nil
}

// roots is nil for the operating system's.
func (d *Dial) roots() (*x509.CertPool, error) {
	path, pem, err := firstFile(d.Roots)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the root certificate of istiod: %w", err)
	case path == systemRoots:
		return nil, nil
	case path != "":
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("the root certificate of istiod: %s has no certificate in PEM", path)
		}
		return pool, nil
	}
	if len(d.Roots) == 0 {
		return nil, fmt.Errorf("the root certificate of %s: PILOT_CERT_PROVIDER=none says that there is none: set CA_ROOT_CA", d.Address)
	}
	return nil, fmt.Errorf("the root certificate of istiod: none of %s is there: mount the ConfigMap istio-ca-root-cert, or set XDS_ROOT_CA", strings.Join(d.Roots, ", "))
}

// certificate is the client's, nil where it has none that is valid: then its token counts.
func (d *Dial) certificate() *tls.Certificate {
	if d.CertChain == "" {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(d.CertChain, d.Key)
	if err != nil || time.Now().After(pair.Leaf.NotAfter) {
		return nil
	}
	return &pair
}

// bearer gives each call the token as it is then.
type bearer struct {
	files []string
	log   *slog.Logger
}

// RequireTransportSecurity has gRPC refuse to send a token in clear.
func (bearer) RequireTransportSecurity() bool { return true }

// GetRequestMetadata is nothing where there is no token: istiod says what it wants.
func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	path, token, err := firstFile(b.files)
	if err != nil {
		b.log.Warn("no token for istiod", "err", err)
	}
	if err != nil || path == "" {
		return nil, nil
	}
	if path != b.files[0] {
		b.log.Warn("istiod is called with the service account's own token, which is for the API server: mount a token for the audience istio-ca", "missing", b.files[0])
	}
	return map[string]string{"authorization": "Bearer " + strings.TrimSpace(string(token))}, nil
}
