package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/security"
)

// Try asks the authority for a certificate as an agent with these settings does, once, and keeps none. It says what it got.
func Try(ctx context.Context, s *config.Config) (string, error) {
	m, err := security.NewManager(request(s, slog.New(slog.DiscardHandler))) // which would say that the workload has a certificate
	if err != nil {
		return "", err
	}
	run, end := context.WithCancel(ctx)
	var group errgroup.Group
	answered := m.Changed() // of the first attempt
	group.Go(func() error { return m.Run(run) })
	select {
	case <-answered:
	case <-ctx.Done():
	}
	secret, err := m.Get(security.Workload)
	end()
	if ended := group.Wait(); ended != nil {
		return "", ended
	}
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(secret.Chain)
	if block == nil {
		return "", errors.New("the authority's answer has no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("signs %s by %q until %s", leaf.URIs[0], leaf.Issuer, leaf.NotAfter.UTC().Format(time.RFC3339)), nil
}
