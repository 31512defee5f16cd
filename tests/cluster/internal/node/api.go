package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

// waitForAPI returns when pods can run: the kubelet of this start has reported, the node is ready, and the service account
// that pods get by default is there.
func waitForAPI(ctx context.Context, began time.Time, done func(string) error) error {
	client, err := adminClient()
	if err != nil {
		return err
	}
	for _, wait := range []struct {
		what string
		look func(context.Context, *http.Client, time.Time) error
	}{
		{"node " + Name + " is ready", nodeReady},
		{"the default service account", defaultAccount},
	} {
		if err := until(ctx, wait.what, func() error { return wait.look(ctx, client, began) }); err != nil {
			return err
		}
		if err := done(wait.what); err != nil {
			return err
		}
	}
	return nil
}

// until looks again and again.
func until(ctx context.Context, what string, look func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := look()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (%w)", what, err, ctx.Err())
		case <-tick.C:
		}
	}
}

// nodeReady looks for a lease that was renewed since the node began, and the condition Ready. After a power loss the
// condition alone is what was so before.
func nodeReady(ctx context.Context, client *http.Client, began time.Time) error {
	var lease struct{ Spec struct{ RenewTime time.Time } }
	if err := get(ctx, client, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+Name, &lease); err != nil {
		return err
	}
	if lease.Spec.RenewTime.Before(began) {
		return fmt.Errorf("the kubelet has not reported since %s", lease.Spec.RenewTime.Format(time.TimeOnly))
	}
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status, Message string }
		}
	}
	if err := get(ctx, client, "/api/v1/nodes/"+Name, &node); err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type == "Ready" && condition.Status == "True" {
			return nil
		} else if condition.Type == "Ready" {
			return errors.New(condition.Message)
		}
	}
	return errors.New("it has no condition Ready")
}

func defaultAccount(ctx context.Context, client *http.Client, _ time.Time) error {
	return get(ctx, client, "/api/v1/namespaces/default/serviceaccounts/default", &struct{}{})
}

func adminClient() (*http.Client, error) {
	authority, err := os.ReadFile(key("ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	certificate, err := tls.LoadX509KeyPair(key("admin.crt"), key("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("read the administrator's certificate: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	return &http.Client{Timeout: lookTimeout, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}},
	}}, nil
}

func get(ctx context.Context, client *http.Client, path string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, Server+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", path, response.Status)
	}
	return json.NewDecoder(response.Body).Decode(into)
}
