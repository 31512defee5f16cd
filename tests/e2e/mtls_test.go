package e2e_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	securityv1alpha1 "istio.io/api/security/v1alpha1"

	"understudy.mesh/tests/lab"
)

// securePort is where Envoy serves its statistics over mutual TLS.
const securePort = "15091"

// TestMutualTLS: a pod whose Envoy needs a certificate is not ready while the authority gives none, and says so in its words; then
// it serves mutual TLS. Over hot upgrades it keeps its certificate, for which nobody is asked again, also by an authority that is away.
func TestMutualTLS(t *testing.T) {
	t.Parallel()
	p, i := newIstiodPod(t, "ENVOY_SECURE_METRICS_PORT="+securePort)
	i.ca.Answer(func(context.Context, *securityv1alpha1.IstioCertificateRequest) ([]string, error) {
		return nil, status.Error(codes.Unavailable, "the authority is being repaired")
	})
	p.start(t, 0, p.older, 1, 0)
	lab.Eventually(t, settleWithin, "the pod says what it waits for", func() error {
		err := p.ready()
		if err == nil {
			t.Fatal("the pod is ready without a certificate")
		}
		for _, want := range []string{"certificate: waiting", "the authority is being repaired"} {
			if !strings.Contains(err.Error(), want) {
				return fmt.Errorf("no %q in: %w", want, err)
			}
		}
		return nil
	})
	shows := func(words ...string) {
		t.Helper()
		got := p.slot(0).Run(t, lab.AgentPath, "status")
		if err := contains(got.Output(), words...); err != nil || got.Code != 0 {
			t.Errorf("status: %v: %v", err, got)
		}
	}
	shows(", not ready", "certificate  waiting", "the authority is being repaired", "Of istiod at "+istiodAddress+": the stream has been open")
	i.ca.Answer(nil)
	p.waitReady(t)
	shows(": serving, ready", "Certificate of spiffe://cluster.local/ns/default/sa/default: valid", "ends in 23h59m")
	id := &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/default/sa/default"}
	chain, key := i.ca.Issue(id)
	pair, err := tls.X509KeyPair(chain, key)
	must(t, err)
	var serial, server string
	ask := func(certificates ...tls.Certificate) error {
		config := &tls.Config{Certificates: certificates, InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
			leaf := s.PeerCertificates[0]
			serial, server = leaf.SerialNumber.String(), fmt.Sprint(leaf.URIs)
			return nil
		}}
		client := http.Client{Transport: &http.Transport{DialContext: p.Pod.Dial, TLSClientConfig: config, DisableKeepAlives: true}, Timeout: lab.Deadline}
		resp, err := client.Get("https://127.0.0.1:" + securePort + "/stats/prometheus")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	must(t, ask(pair))
	if want := fmt.Sprint([]*url.URL{id}); server != want {
		t.Errorf("the pod shows a certificate for %s, want %s", server, want)
	}
	if ask() == nil {
		t.Error("a client without a certificate is served")
	}

	first, requests := serial, len(i.ca.Requests())
	upgrade := func(slot int, image lab.Image, version int) {
		t.Helper()
		p.start(t, slot, image, version, version-1)
		p.mustServe(t, slot, image)
		must(t, ask(pair))
		if serial != first {
			t.Errorf("after an upgrade the pod shows the certificate %s, before it %s", serial, first)
		}
	}
	upgrade(1, p.newer, 2)
	const left = "the successor renews the certificate from here on"
	lab.Eventually(t, settleWithin, "the old generation leaves the certificate to the new one", func() error {
		if !strings.Contains(p.slot(0).Log.String(), left) {
			return errors.New("it has not said so")
		}
		return nil
	})
	if strings.Contains(p.slot(1).Log.String(), left) {
		t.Error("the generation that serves renews no certificate")
	}
	i.stop()
	p.slot(0).Stop(lab.Deadline)
	upgrade(0, p.older, 3)
	if got := len(i.ca.Requests()); got != requests {
		t.Errorf("the authority was asked %d times for the upgrades", got-requests)
	}
	for n := range p.slots.List {
		if strings.Contains(p.slot(n).Log.String(), "PRIVATE KEY") {
			t.Errorf("a key in the log of slot %d", n)
		}
	}
}
