package sds

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"go.uber.org/goleak"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"understudy.mesh/pkg/security"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is one for what ought to take less than a second.
const deadline = 20 * time.Second

// shelf is a source that has what a test puts there.
type shelf struct {
	mu      sync.Mutex
	secrets map[string]security.Secret
	looks   map[string]int // by name: how often it was asked for
	reason  string
	changed chan struct{}
}

func newShelf() *shelf {
	return &shelf{secrets: map[string]security.Secret{}, looks: map[string]int{}, reason: "the CA is away", changed: make(chan struct{})}
}

func (s *shelf) Get(name string) (security.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looks[name]++
	if secret, ok := s.secrets[name]; ok {
		return secret, nil
	}
	return security.Secret{}, errors.New(s.reason)
}

func (s *shelf) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

func (s *shelf) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *shelf) put(name string, secret security.Secret) {
	s.change(func() { s.secrets[name] = secret })
}

func (s *shelf) looked(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.looks[name]
}

// lines is a log that a test reads; every line of it is checked for the key at the end.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// sds is a server under test, with a client of it.
type sds struct {
	*Server
	t    *testing.T
	shop *shelf
	told chan map[string]error
	log  *lines
	path string
	conn *grpc.ClientConn
}

const theKey = "the key that nobody may see"

func startSDS(t *testing.T) *sds {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sds.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &sds{t: t, shop: newShelf(), told: make(chan map[string]error, 64), log: &lines{}, path: path}
	s.Server = New(l, s.shop, func(w map[string]error) { s.told <- maps.Clone(w) }, slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if s.conn, err = grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.conn.Close()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if strings.Contains(s.log.String(), theKey) {
			t.Errorf("the key is in the log:\n%s", s.log)
		}
	})
	return s
}

// expectWaiting takes what the server tells: the names that are waited for, each with its reason.
func (s *sds) expectWaiting(want ...string) {
	s.t.Helper()
	select {
	case waiting := <-s.told:
		var got []string
		for _, name := range slices.Sorted(maps.Keys(waiting)) {
			got = append(got, name+": "+waiting[name].Error())
		}
		if !slices.Equal(got, want) {
			s.t.Fatalf("told %q, want %q", got, want)
		}
	case <-time.After(deadline):
		s.t.Fatalf("nothing told, want %q", want)
	}
}

// asker is a stream of Envoy's.
type asker struct {
	t     *testing.T
	conn  secretv3.SecretDiscoveryService_StreamSecretsClient
	names []string
	leave func()
}

func (s *sds) ask(names ...string) *asker {
	s.t.Helper()
	ctx, leave := context.WithTimeout(context.Background(), deadline)
	s.t.Cleanup(leave)
	conn, err := secretv3.NewSecretDiscoveryServiceClient(s.conn).StreamSecrets(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	a := &asker{s.t, conn, names, leave}
	a.send(&discoveryv3.DiscoveryRequest{})
	return a
}

func (a *asker) send(req *discoveryv3.DiscoveryRequest) {
	a.t.Helper()
	req.ResourceNames, req.TypeUrl = a.names, secretType
	if err := a.conn.Send(req); err != nil && err != io.EOF { // the server has closed the stream: Recv says how
		a.t.Fatal(err)
	}
}

// expect takes the next response, and returns it with its secrets.
func (a *asker) expect(names ...string) (*discoveryv3.DiscoveryResponse, []*tlsv3.Secret) {
	a.t.Helper()
	resp, err := a.conn.Recv()
	if err != nil {
		a.t.Fatal(err)
	}
	var secrets []*tlsv3.Secret
	var got []string
	for _, r := range resp.GetResources() {
		secret := &tlsv3.Secret{}
		if err := r.UnmarshalTo(secret); err != nil {
			a.t.Fatal(err)
		}
		secrets, got = append(secrets, secret), append(got, secret.GetName())
	}
	if resp.GetTypeUrl() != secretType || resp.GetVersionInfo() == "" || !slices.Equal(got, names) {
		a.t.Fatalf("a response of type %s, version %q with %q, want %q", resp.GetTypeUrl(), resp.GetVersionInfo(), got, names)
	}
	return resp, secrets
}

func (a *asker) ack(resp *discoveryv3.DiscoveryResponse) {
	a.send(&discoveryv3.DiscoveryRequest{ResponseNonce: resp.GetNonce(), VersionInfo: resp.GetVersionInfo()})
}

func want(got, wanted uint64) error {
	if got != wanted {
		return fmt.Errorf("%d, want %d", got, wanted)
	}
	return nil
}

// TestSecretComesLater: while there is no secret the stream stays open and silent, and what is waited for is told with its
// reason, as it changes; then it comes.
func TestSecretComesLater(t *testing.T) {
	s := startSDS(t)
	a := s.ask(security.Workload)
	s.expectWaiting("default: the CA is away")
	s.shop.change(func() { s.shop.reason = "the CA says no" })
	s.expectWaiting("default: the CA says no")
	other := s.ask(security.Roots)
	s.expectWaiting("ROOTCA: the CA says no", "default: the CA says no")
	other.leave()
	s.expectWaiting("default: the CA says no")

	s.shop.put(security.Workload, security.Secret{Chain: []byte("chain"), Key: []byte(theKey)})
	s.expectWaiting()
	_, secrets := a.expect(security.Workload)
	certificate := secrets[0].GetTlsCertificate()
	if string(certificate.GetCertificateChain().GetInlineBytes()) != "chain" || string(certificate.GetPrivateKey().GetInlineBytes()) != theKey {
		t.Error("not the certificate and key of the source")
	}
	if !strings.Contains(s.log.String(), "the CA says no") {
		t.Errorf("no word of what Envoy waits for in the log:\n%s", s.log)
	}
	if strings.Contains(s.log.String(), "level=WARN") {
		t.Errorf("every start waits for the workload's secrets, and is warned of:\n%s", s.log)
	}
	s.ask("file-root:/none")
	s.expectWaiting("file-root:/none: the CA says no")
	if !strings.Contains(s.log.String(), "level=WARN") {
		t.Errorf("no warning of a file that is not there:\n%s", s.log)
	}
}

// TestSecretChanges: a secret that changes goes out again, one that does not stays, and a name asked for again on another
// stream is answered at once.
func TestSecretChanges(t *testing.T) {
	s := startSDS(t)
	s.shop.put(security.Roots, security.Secret{Roots: []byte("root 1")})
	a := s.ask(security.Roots)
	first, secrets := a.expect(security.Roots)
	if c := secrets[0].GetValidationContext(); string(c.GetTrustedCa().GetInlineBytes()) != "root 1" || c.GetCrl() != nil {
		t.Errorf("roots %v", c)
	}
	a.ack(first)
	looks := s.shop.looked(security.Roots)
	s.shop.put(security.Workload, security.Secret{Chain: []byte("chain"), Key: []byte(theKey)}) // another's
	eventually(t, "the stream has looked at it", func() error {
		if s.shop.looked(security.Roots) == looks {
			return errors.New("not yet")
		}
		return nil
	})
	s.shop.put(security.Roots, security.Secret{Roots: []byte("root 1"), CRL: []byte("revoked")})
	second, secrets := a.expect(security.Roots)
	if c := secrets[0].GetValidationContext(); string(c.GetCrl().GetInlineBytes()) != "revoked" {
		t.Errorf("roots %v", c)
	}
	if second.GetNonce() == first.GetNonce() || second.GetVersionInfo() == first.GetVersionInfo() {
		t.Error("another response with the same nonce or version")
	}
	b := s.ask(security.Roots)
	b.expect(security.Roots)
	eventually(t, "three responses", func() error { return want(s.pushes.Load(), 3) }) // they are counted when they are sent
}

// TestSecretRefused: a secret that Envoy refuses is counted, logged in Envoy's words, and not sent again; the next one is.
func TestSecretRefused(t *testing.T) {
	s := startSDS(t)
	s.shop.put(security.Workload, security.Secret{Chain: []byte("chain 1"), Key: []byte(theKey)})
	a := s.ask(security.Workload)
	first, _ := a.expect(security.Workload)
	a.send(&discoveryv3.DiscoveryRequest{ResponseNonce: first.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "Failed to load certificate chain"}})
	eventually(t, "one refusal", func() error { return want(s.nacked.Load(), 1) })
	s.shop.put(security.Roots, security.Secret{Roots: []byte("root")}) // wakes the stream, which has nothing new
	s.shop.put(security.Workload, security.Secret{Chain: []byte("chain 2"), Key: []byte(theKey)})
	second, secrets := a.expect(security.Workload)
	if got := string(secrets[0].GetTlsCertificate().GetCertificateChain().GetInlineBytes()); got != "chain 2" {
		t.Errorf("after a refusal comes %q, want the next secret", got)
	}
	// Another answer to the first response is out of date, whatever it says.
	a.send(&discoveryv3.DiscoveryRequest{ResponseNonce: first.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "late"}})
	a.ack(second)
	s.shop.put(security.Workload, security.Secret{Chain: []byte("chain 3"), Key: []byte(theKey)})
	a.expect(security.Workload)
	if got := s.nacked.Load(); got != 1 {
		t.Errorf("%d refusals counted, want 1", got)
	}
	if log := s.log.String(); !strings.Contains(log, "Failed to load certificate chain") || strings.Contains(log, "late") {
		t.Errorf("want Envoy's words of the first refusal, and no others, in the log:\n%s", log)
	}
}

// TestNames: a stream may ask for several secrets, and for others later.
func TestNames(t *testing.T) {
	s := startSDS(t)
	s.shop.put("a", security.Secret{Roots: []byte("a")})
	stream := s.ask("a", "b")
	s.expectWaiting("b: the CA is away")
	first, _ := stream.expect("a")
	s.shop.put("b", security.Secret{Roots: []byte("b")})
	s.expectWaiting()
	second, _ := stream.expect("a", "b")
	stream.ack(first) // late
	stream.names = []string{"c"}
	stream.ack(second)
	s.expectWaiting("c: the CA is away")
	s.shop.put("c", security.Secret{Roots: []byte("c")})
	stream.expect("c")
}

// TestServerEnd closes streams in good order, those too that are opened afterwards.
func TestServerEnd(t *testing.T) {
	s := startSDS(t)
	open := s.ask(security.Workload)
	s.expectWaiting("default: the CA is away")
	s.End()
	for _, a := range []*asker{open, s.ask(security.Workload)} {
		if _, err := a.conn.Recv(); err != io.EOF {
			t.Errorf("the stream ended with %v, want status OK", err)
		}
	}
}
