package serve

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"understudy.mesh/cmd/sidecar-injector/internal/certs"
	"understudy.mesh/tests/cluster/standin"
	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/lab"
)

// TestMain turns off a way to list that the stand-in for the API server does not go.
func TestMain(m *testing.M) {
	if err := os.Setenv("KUBE_FEATURE_WatchListClient", "false"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// fileLimit is how long a change of files may take, on a machine that does something else besides.
const fileLimit = time.Minute

// fileWorld is an injector whose certificate is in files, with the API server that it has.
type fileWorld struct {
	api                      *standin.API
	dir, address, status     string
	serverName, caFile, said string // said is what the API server has of the injector
	log                      *syncBuffer
}

type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// newFileWorld starts one with the certificate of an authority; it ends with the test.
func newFileWorld(t *testing.T, ca *lab.CA) *fileWorld {
	t.Helper()
	w := &fileWorld{
		api: standin.New(), dir: t.TempDir(), serverName: "sidecar-injector.own.svc", log: &syncBuffer{},
		address: fmt.Sprintf("127.0.0.1:%d", freeport.Get(t)), status: fmt.Sprintf("127.0.0.1:%d", freeport.Get(t)),
		said: "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/sidecar-injector",
	}
	w.caFile = filepath.Join(w.dir, "ca.crt")
	w.api.Put("/api/v1/namespaces/shop", `{"metadata": {"name": "shop", "labels": {"istio-injection": "enabled"}}}`)
	w.api.Put("/apis/understudy.mesh/v1alpha1/namespaces/own/sidecarprofiles/default", `{"apiVersion": "understudy.mesh/v1alpha1",
		"kind": "SidecarProfile", "metadata": {"name": "default", "namespace": "own"}, "spec": {"proxy": {"image": "proxy"}}}`)
	server := httptest.NewServer(w.api)
	w.write(t, ca)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, &rest.Config{Host: server.URL}, Options{
			Namespace: "own", Identity: "one", Address: w.address, StatusAddress: w.status, DefaultRevision: true,
			CertFile: filepath.Join(w.dir, "tls.crt"), KeyFile: filepath.Join(w.dir, "tls.key"), CAFile: w.caFile,
			Lives: certs.Lives{CA: time.Hour, Leaf: time.Minute},
		}, slog.New(slog.NewTextHandler(w.log, nil)))
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the injector ended: %v", err)
		}
		server.CloseClientConnections()
		server.Close()
		if t.Failed() {
			t.Log(w.log)
		}
	})
	return w
}

// write puts another certificate into the files, and whom to trust for it.
func (w *fileWorld) write(t *testing.T, ca *lab.CA) {
	t.Helper()
	ca.ServerFiles(t, w.dir, w.serverName)
	ca.WriteFile(t, w.caFile)
}

// injects is an error unless who trusts an authority gets a pod injected.
func (w *fileWorld) injects(ca *lab.CA) error {
	client := &http.Client{Timeout: lab.Deadline, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: w.serverName},
	}}
	review := `{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "u", "operation": "CREATE", "namespace": "shop",
		"resource": {"version": "v1", "resource": "pods"}, "object": ` + aPod + `}}`
	response, err := client.Post("https://"+w.address+"/inject", "application/json", strings.NewReader(review))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && !bytes.Contains(body, []byte(`"patchType":"JSONPatch"`)) {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return err
}

// trusted is an error unless every entry that the API server has trusts what is in the authority's file now.
func (w *fileWorld) trusted() error {
	var c struct {
		Webhooks []struct{ ClientConfig struct{ CABundle string } }
	}
	if err := json.Unmarshal(w.api.Object(w.said), &c); err != nil {
		return err
	}
	want, err := os.ReadFile(w.caFile)
	if err == nil && len(c.Webhooks) == 0 {
		err = errors.New("there are no entries")
	}
	for _, entry := range c.Webhooks {
		if entry.ClientConfig.CABundle != base64.StdEncoding.EncodeToString(want) {
			err = errors.Join(err, errors.New("an entry trusts another authority"))
		}
	}
	return err
}

// TestCertificateFiles: a certificate in files is served, and whom to trust for it is written; a new one takes its place while it
// serves. Files that do not go together change nothing.
func TestCertificateFiles(t *testing.T) {
	first, second := lab.NewCA(t), lab.NewCA(t)
	w := newFileWorld(t, first)
	lab.Eventually(t, fileLimit, "the first certificate is served", func() error { return w.injects(first) })
	lab.Eventually(t, fileLimit, "its authority is trusted", w.trusted)
	if response, err := http.Get("http://" + w.status + "/readyz"); err != nil || response.StatusCode != http.StatusOK {
		t.Errorf("not ready: %v, %v", response, err)
	}

	w.write(t, second)
	lab.Eventually(t, fileLimit, "the second certificate is served", func() error {
		if err := w.injects(second); err == nil {
			return nil
		}
		if err := w.injects(first); err != nil { // it may have changed in between
			return w.injects(second)
		}
		return errors.New("the first one is served")
	})
	lab.Eventually(t, fileLimit, "its authority is trusted", w.trusted)

	key := filepath.Join(w.dir, "tls.key")
	if err := os.WriteFile(key, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, fileLimit, "the mistake is said", func() error {
		if text := w.log.String(); !strings.Contains(text, "no new certificate") || !strings.Contains(text, key) {
			return errors.New(text)
		}
		return nil
	})
	if err := w.injects(second); err != nil {
		t.Errorf("with a bad key in its file: %v", err)
	}
	w.write(t, first)
	lab.Eventually(t, fileLimit, "the first certificate is served again", func() error { return w.injects(first) })
}
