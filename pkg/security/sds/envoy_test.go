package sds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.mesh/bootstrap"
	"understudy.mesh/pkg/envoy"
	"understudy.mesh/pkg/security"
	"understudy.mesh/tests/catest"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/realenvoy"
)

// patience is a deadline for what ought to take less than a second.
const patience = 60 * time.Second

// eventually waits until check finds nothing wrong.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// issue makes a certificate of a workload, and its key.
func issue(t *testing.T, ca *catest.CA, account string) security.Secret {
	t.Helper()
	chain, key := ca.Issue(&url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/shop/sa/" + account})
	return security.Secret{Chain: chain, Key: key}
}

// client returns what speaks mutual TLS as a workload, by a connection for each request; without a certificate, if of is nil.
// The serial number is of the certificate that the server showed last.
func client(t *testing.T, ca *catest.CA, of *security.Secret) (c *http.Client, serial func() string) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca.Root()))
	var last string
	config := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(state tls.ConnectionState) error { // a SPIFFE id is no host
		leaf := state.PeerCertificates[0]
		last = leaf.SerialNumber.String()
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots})
		if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/shop/sa/web") {
			err = fmt.Errorf("the server is %v", leaf.URIs)
		}
		return err
	}}
	if of != nil {
		pair, err := tls.X509KeyPair(of.Chain, of.Key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}, func() string { return last }
}

// TestEnvoyServesWithSecrets: an Envoy that has no certificate yet waits, serves mutual TLS once it has one, and takes another
// one, or other roots, without a request lost.
func TestEnvoyServesWithSecrets(t *testing.T) {
	const root = "../../.."
	program := realenvoy.Path(t, root)
	s := startSDS(t)
	dir, port := t.TempDir(), freeport.Get(t)
	b, err := bootstrap.Build(bootstrap.Config{
		Node:      bootstrap.Node{ID: "sidecar~127.0.0.1~a.b~c", Cluster: "test"},
		AdminPath: filepath.Join(dir, "admin"), XDSPath: filepath.Join(dir, "xds"), StatsPort: freeport.Get(t), StatsLoopbackOnly: true, IPv4: true,
		Istiod: &bootstrap.Istiod{SDSPath: s.path, SecureStatsPort: port},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.DynamicResources = nil // nobody serves them
	raw, err := bootstrap.MarshalBinary(b)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "bootstrap.pb")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	process := realenvoy.Start(t, filepath.Join(dir, "admin"), output, program, envoy.Args(envoy.Options{ConfigPath: file, Concurrency: 1, DrainDuration: time.Second})...)
	t.Cleanup(func() {
		s.End()
		process.Stop()
		if text, _ := os.ReadFile(output.Name()); t.Failed() {
			t.Logf("Envoy: %v\n%s\nagent:\n%s", process.Err(), text, s.log)
		}
	})

	eventually(t, "Envoy waits for both secrets", func() error {
		for {
			select {
			case waiting := <-s.told:
				if len(waiting) == 2 {
					return nil
				}
			default:
				return errors.New("not yet")
			}
		}
	})
	if process.Ready(t.Context()) {
		t.Fatal("Envoy is ready without a certificate")
	}
	ca, next := catest.New(t, "root"), catest.New(t, "next root")
	s.shop.put(security.Roots, security.Secret{Roots: []byte(ca.Root())})
	s.shop.put(security.Workload, issue(t, ca, "web"))
	eventually(t, "Envoy is ready", func() error {
		if !process.Ready(t.Context()) {
			return errors.New("not yet")
		}
		return nil
	})

	address := fmt.Sprintf("https://127.0.0.1:%d/stats/prometheus", port)
	peer := issue(t, ca, "caller")
	ask, serial := client(t, ca, &peer)
	get := func(c *http.Client) error {
		resp, err := c.Get(address)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		return nil
	}
	eventually(t, "the listener accepts", func() error { return get(ask) })
	if stranger, _ := client(t, ca, nil); get(stranger) == nil {
		t.Error("a client without a certificate is served")
	}

	first := serial()
	for range 20 {
		s.shop.put(security.Workload, issue(t, ca, "web"))
		if err := get(ask); err != nil {
			t.Fatalf("while the certificate is replaced: %v", err)
		}
	}
	eventually(t, "Envoy shows another certificate", func() error {
		if err := get(ask); err != nil {
			t.Fatalf("after the certificate was replaced: %v", err)
		}
		if serial() == first {
			return fmt.Errorf("it is still %s", first)
		}
		return nil
	})

	// A root more, and a peer of that root; then the old root is gone, and its peer is refused.
	s.shop.put(security.Roots, security.Secret{Roots: []byte(ca.Root() + next.Root())})
	newPeer := issue(t, next, "caller")
	askNew, _ := client(t, ca, &newPeer)
	eventually(t, "a peer of the new root is served", func() error { return get(askNew) })
	if err := get(ask); err != nil {
		t.Errorf("a peer of the old root, beside the new one: %v", err)
	}
	s.shop.put(security.Roots, security.Secret{Roots: []byte(next.Root())})
	eventually(t, "a peer of the old root is refused", func() error {
		if get(ask) == nil {
			return errors.New("it is served")
		}
		return nil
	})

	// What Envoy refuses changes nothing.
	s.shop.put(security.Workload, security.Secret{Chain: []byte("no certificate"), Key: []byte(theKey)})
	eventually(t, "the refusal is counted", func() error {
		if s.nacked.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := get(askNew); err != nil {
		t.Errorf("after a secret that Envoy refused: %v", err)
	}
	if !strings.Contains(s.log.String(), "Envoy refused a secret") {
		t.Errorf("no word of the refusal in the log:\n%s", s.log)
	}
}
