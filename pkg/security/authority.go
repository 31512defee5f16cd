package security

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1alpha1 "istio.io/api/security/v1alpha1"
)

const (
	// attemptTimeout bounds one request to the CA, connecting included. A CA signs within a second; one that takes longer is
	// better asked again, by a connection that may lead to another replica.
	attemptTimeout = 15 * time.Second
	// maxAnswer bounds what a CA may answer, in bytes: a chain has some KiB, with all roots of a large mesh some hundred.
	maxAnswer = 1 << 20
	// signerKey is the field of a request that says with which of its signers the CA is to sign.
	signerKey = "CertSigner"
)

// authority is the CA, as a client sees it.
type authority struct {
	address  string // for messages
	connect  func() (*grpc.ClientConn, error)
	headers  map[string]string
	signer   string
	lifetime time.Duration
	timeout  time.Duration
}

// sign has a request signed. The chain is in PEM, the certificate first, the root last. Each request has a connection of its
// own: there is one in half a lifetime, and a CA whose root or address has changed is found again.
func (a *authority) sign(ctx context.Context, csr []byte) (chain []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("the CA at %s: %w", a.address, err)
		}
	}()
	conn, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for _, key := range slices.Sorted(maps.Keys(a.headers)) {
		ctx = metadata.AppendToOutgoingContext(ctx, key, a.headers[key])
	}
	answer, err := securityv1alpha1.NewIstioCertificateServiceClient(conn).CreateCertificate(ctx, &securityv1alpha1.IstioCertificateRequest{
		Csr: string(csr), ValidityDuration: int64(a.lifetime.Seconds()),
		Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{signerKey: structpb.NewStringValue(a.signer)}},
	}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if err != nil {
		s := status.Convert(err)
		return nil, fmt.Errorf("%s: %s", s.Code(), s.Message())
	}
	chain = answer.GetCertChain()
	if len(chain) < 2 {
		return nil, errors.New("an answer without a certificate and its root: look at the CA's log")
	}
	return chain, nil
}
