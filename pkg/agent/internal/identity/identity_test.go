package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/security"
	"understudy.mesh/pkg/security/credential"
	"understudy.mesh/pkg/security/sds"
	"understudy.mesh/pkg/status"
	"understudy.mesh/tests/catest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func settings(t *testing.T, environ ...string) *config.Config {
	t.Helper()
	c, _, err := config.Load(config.Sources{Environ: environ})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestReadiness: a pod does not become ready while Envoy waits for the workload's certificate, in the words of who does not
// give it. No file keeps it, and once it has been ready nothing does.
func TestReadiness(t *testing.T) {
	ready, served, changes := &status.Readiness{}, make(chan struct{}), 0
	ready.Done("config")
	i, err := New(Config{
		Settings: settings(t), Listener: listen(t, filepath.Join(t.TempDir(), "s")), Ready: ready, Served: served,
		Changed: func() { changes++ }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(step, want string) {
		t.Helper()
		var got []string
		_, pending := ready.Check()
		for _, p := range pending {
			got = append(got, p.String())
		}
		if text := strings.Join(got, "\n"); (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("%s: readiness says %q, want %q", step, text, want)
		}
	}
	away := errors.New("the CA at ca:15012: Unavailable")
	i.waiting(map[string]error{"file-root:/ca.pem": errors.New("no such file")})
	expect("a file", "")
	i.waiting(map[string]error{security.Workload: away, security.Roots: away})
	expect("the certificate", "certificate: waiting: Envoy waits for the workload's certificate: the CA at ca:15012: Unavailable")
	i.waiting(map[string]error{security.Roots: errors.New("no roots")})
	expect("the roots", "no roots")
	before := changes
	i.waiting(nil)
	expect("nothing", "")
	if changes == before {
		t.Error("nobody is told that nothing is waited for any more")
	}
	close(served)
	i.waiting(map[string]error{security.Workload: away})
	expect("after the pod was ready", "")
}

// TestFindOthers finds another server that has the workload's certificate, as Istio's agent does, but takes nothing of its own for
// another's, and leaves what it finds.
func TestFindOthers(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	custom := settings(t, "WORKLOAD_IDENTITY_SOCKET_FILE=spire")
	t.Chdir(t.TempDir())
	if err := os.MkdirAll(externalDir, 0o755); err != nil {
		t.Fatal(err)
	}
	expect := func(c *config.Config, wantPath, wantErr string) {
		t.Helper()
		others, err := FindOthers(c, log)
		path := others.Workload
		if wantPath != "" {
			wantPath, _ = filepath.Abs(filepath.Join(externalDir, wantPath))
		}
		if path != wantPath || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) {
			t.Errorf("%q, %v; want %q, %q", path, err, wantPath, wantErr)
		}
	}
	expect(settings(t), "", "")
	expect(custom, "", "environment: WORKLOAD_IDENTITY_SOCKET_FILE=spire: nobody serves certificates")

	l := listen(t, filepath.Join(externalDir, "other"))
	server := sds.New(l, nil, nil, log)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(t.Context()) }()
	if err := os.Symlink("other", filepath.Join(externalDir, istioSocket)); err != nil {
		t.Fatal(err)
	}
	expect(settings(t, "WORKLOAD_IDENTITY_SOCKET_FILE=other"), "other", "")
	expect(settings(t), "", "") // the link is an agent's own
	if err := os.Remove(filepath.Join(externalDir, istioSocket)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(externalDir, "other"), filepath.Join(externalDir, istioSocket)); err != nil {
		t.Fatal(err)
	}
	expect(settings(t), istioSocket, "")
	l.Close()
	<-ended
	expect(settings(t), "", "") // left by somebody who is gone
	if _, err := os.Lstat(filepath.Join(externalDir, istioSocket)); err != nil {
		t.Errorf("what somebody else has left is removed: %v", err)
	}
}

// TestFindCredentials finds a server that has certificates by name, if it is one.
func TestFindCredentials(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	c := settings(t)
	t.Chdir(t.TempDir())
	expect := func(want bool) {
		t.Helper()
		if others, err := FindOthers(c, log); err != nil || others.Credentials != want || others.Workload != "" {
			t.Errorf("%+v, %v; want %v", others, err, want)
		}
	}
	expect(false)
	if err := os.MkdirAll(filepath.Dir(credentialSocket), 0o755); err != nil {
		t.Fatal(err)
	}
	l := listen(t, credentialSocket)
	server := sds.New(l, nil, nil, log)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(t.Context()) }()
	expect(true)
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	<-ended
	expect(false) // left by somebody who is gone
}

// TestHandOver: a successor has its predecessor's certificate, by a name that no release changes.
func TestHandOver(t *testing.T) {
	c := settings(t, "POD_NAMESPACE=shop", "SERVICE_ACCOUNT=web")
	log := slog.New(slog.DiscardHandler)
	ca := catest.New(t, "root")
	predecessor, err := security.NewManager(security.Config{
		TrustDomain: c.TrustDomain, Namespace: "shop", ServiceAccount: "web", Connect: ca.Serve(), Key: credential.Kind{Curve: "P256"}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- predecessor.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	late := time.After(2 * time.Minute)
	for changed := predecessor.Changed(); predecessor.Export() == nil; changed = predecessor.Changed() {
		if predecessor.Export() != nil {
			break
		}
		select {
		case <-changed:
		case <-late:
			t.Fatal("no certificate")
		}
	}
	i, err := New(Config{Settings: c, Listener: listen(t, filepath.Join(t.TempDir(), "s")), Ready: &status.Readiness{}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if len(i.Export()) != 0 {
		t.Error("what has no certificate hands one over")
	}
	i.Import(map[string][]byte{"identity": predecessor.Export()})
	want, _ := predecessor.Get(security.Workload)
	got, err := i.manager.Get(security.Workload)
	if err != nil || !bytes.Equal(got.Chain, want.Chain) || !bytes.Equal(got.Key, want.Key) {
		t.Errorf("the successor has %v, %v, not the predecessor's certificate", got, err)
	}
	if i.Export()["identity"] == nil {
		t.Error("a successor hands nothing over")
	}
}
