// Package sds owns the secret discovery service: how one Envoy gets its secrets, whatever has them.
package sds

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/security"
	"understudy.mesh/pkg/status"
)

const (
	// maxRequest bounds a request: names, and what Envoy says of itself with a new stream.
	maxRequest = 4 << 20
	// maxStreams bounds the streams of one connection: Envoy opens one for each name, and for each form in which a
	// listener or cluster refers to it.
	maxStreams = 1 << 16
	// secretType is the type of every resource here.
	secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// resource is a secret in Envoy's form.
func resource(name string, s security.Secret) (*anypb.Any, error) {
	secret := &tlsv3.Secret{Name: name}
	if s.Key != nil {
		secret.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline(s.Chain), PrivateKey: inline(s.Key)}}
	} else {
		roots := &tlsv3.CertificateValidationContext{TrustedCa: inline(s.Roots)}
		if s.CRL != nil {
			roots.Crl = inline(s.CRL)
		}
		secret.Type = &tlsv3.Secret_ValidationContext{ValidationContext: roots}
	}
	raw, err := grpcsock.Marshal(secret)
	if err != nil {
		return nil, fmt.Errorf("marshal the secret %s: %w", name, err) // of its form, never of its content
	}
	return &anypb.Any{TypeUrl: secretType, Value: raw}, nil
}

func inline(pem []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: pem}}
}

// Source has the secrets.
type Source interface {
	// Get returns a secret, or why there is none yet, in words for who waits for it. It does not wait itself.
	Get(name string) (security.Secret, error)
	// Changed is closed when Get may say otherwise, of any name, than it did after this call.
	Changed() <-chan struct{}
}

// Server is the secret discovery service (SDS) of one Envoy. Of a secret that is not there it says nothing, and the stream
// stays open: an error would have Envoy ask again and again.
type Server struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer

	sock    *grpcsock.Server
	source  Source
	waiting func(map[string]error)
	log     *slog.Logger

	nonce          atomic.Uint64 // of the last response, which is also its version
	pushes, nacked atomic.Uint64

	mu      sync.Mutex
	missing map[*secretStream]map[string]error // by stream and name
	told    map[string]error                   // what waiting was told last
}

// New returns a server for l, a Unix listener whose file mode (0600) says who may connect. waiting is told the secrets
// that Envoy asks for and that are not there, by name, and why, whenever that changes, one call at a time. It starts
// nothing; Run owns l from then on.
func New(l net.Listener, source Source, waiting func(map[string]error), log *slog.Logger) *Server {
	s := &Server{
		sock:   grpcsock.New(l, "secrets", grpcsock.Limits{Request: maxRequest, Streams: maxStreams}),
		source: source, waiting: waiting, log: log, missing: make(map[*secretStream]map[string]error),
	}
	secretv3.RegisterSecretDiscoveryServiceServer(s.sock, s)
	return s
}

// Run serves until ctx ends, and returns once every stream is closed: nil when ctx was cancelled, else why it could not
// serve. It closes the listener.
func (s *Server) Run(ctx context.Context) error { return s.sock.Run(ctx) }

// End closes every stream in good order, those too that are opened afterwards.
func (s *Server) End() { s.sock.End() }

// Samples are the metrics.
func (s *Server) Samples() []status.Sample {
	return []status.Sample{
		{Name: "sds_pushes_total", Help: "Responses with secrets that Envoy was sent.", Value: float64(s.pushes.Load())},
		{Name: "sds_rejected_total", Help: "Responses with secrets that Envoy refused.", Value: float64(s.nacked.Load())},
	}
}

// StreamSecrets serves one stream; gRPC calls it.
func (s *Server) StreamSecrets(conn secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	requests := grpcsock.Receive(s.sock, conn)
	st := &secretStream{server: s, conn: conn, sent: make(map[string]security.Secret)}
	defer s.report(st, nil)
	for {
		changed := s.source.Changed() // before the look, which would miss what changes after it
		if err := st.push(); err != nil {
			return err
		}
		select {
		case req, open := <-requests:
			if !open {
				return nil
			}
			st.handle(req)
		case <-changed:
		case <-s.sock.Ending():
			return nil
		}
	}
}

// report notes which secrets a stream waits for, and tells of it.
func (s *Server) report(st *secretStream, missing map[string]error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(missing) > 0 {
		s.missing[st] = missing
	} else {
		delete(s.missing, st)
	}
	all := make(map[string]error)
	for _, of := range s.missing {
		maps.Copy(all, of)
	}
	sameWords := func(a, b error) bool { return a.Error() == b.Error() }
	if maps.EqualFunc(all, s.told, sameWords) {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if before, known := s.told[name]; !known || !sameWords(before, all[name]) {
			s.logMissing(name, all[name])
		}
	}
	s.told = all
	s.waiting(all)
}

// logMissing warns of a file that is not there. The workload's own secrets are not there at every start, until the authority has
// answered, and who obtains them says what is wrong with it.
func (s *Server) logMissing(name string, err error) {
	log := s.log.Warn
	if name == security.Workload || name == security.Roots {
		log = s.log.Info
	}
	log("Envoy waits for a secret", "name", name, "err", err)
}

// secretStream is one stream of Envoy's: it asks for one name, and the protocol allows for more.
type secretStream struct {
	server *Server
	conn   secretv3.SecretDiscoveryService_StreamSecretsServer
	names  []string
	sent   map[string]security.Secret // of names; refused ones too: Envoy has no use for them a second time
	nonce  string                     // of the last response
}

// handle takes in one request: an ACK or NACK, other names, or both. One that answers an older response than the last is
// followed by another, and says nothing.
func (st *secretStream) handle(req *discoveryv3.DiscoveryRequest) {
	if req.GetResponseNonce() != st.nonce {
		return
	}
	names := strings.Join(st.names, ", ")
	switch detail := req.GetErrorDetail(); {
	case st.nonce == "":
	case detail != nil:
		st.server.nacked.Add(1)
		st.server.log.Warn("Envoy refused a secret and uses the one before, if there is one", "name", names, "version", st.nonce, "message", detail.GetMessage())
	default:
		st.server.log.Debug("Envoy took a secret", "name", names, "version", st.nonce)
	}
	st.names = req.GetResourceNames()
	maps.DeleteFunc(st.sent, func(name string, _ security.Secret) bool { return !slices.Contains(st.names, name) })
}

// push sends all that Envoy asks for, if something of it is new.
func (st *secretStream) push() error {
	found, missing, fresh := make(map[string]security.Secret), make(map[string]error), false
	for _, name := range st.names {
		secret, err := st.server.source.Get(name)
		if err != nil {
			missing[name] = err
			continue
		}
		found[name] = secret
		before, sent := st.sent[name]
		fresh = fresh || !sent || !before.Equal(secret)
	}
	st.server.report(st, missing)
	if !fresh {
		return nil
	}
	number := strconv.FormatUint(st.server.nonce.Add(1), 10)
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: secretType, Nonce: number, VersionInfo: number}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		encoded, err := resource(name, found[name])
		if err != nil {
			return err
		}
		resp.Resources = append(resp.Resources, encoded)
	}
	if err := st.conn.Send(resp); err != nil {
		return fmt.Errorf("send a secret to Envoy: %w", err)
	}
	st.server.pushes.Add(1)
	maps.Copy(st.sent, found)
	st.nonce = number
	return nil
}
