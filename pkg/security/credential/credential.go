// Package credential owns the form of a workload's certificate: its key, the request for it, and what must hold before
// it is used.
package credential

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
)

const (
	// ahead is how far the machine's clock may be behind the CA's: a certificate that begins so much later is used. More
	// than that is a fault of a clock, which no new certificate mends.
	ahead = 5 * time.Minute
	// certificateBlock is the type of a certificate in PEM.
	certificateBlock = "CERTIFICATE"
)

// Parts are what a credential is made of, in PEM.
type Parts struct {
	Chain []byte // the certificate first, then those that signed it
	Key   []byte
	Roots []byte // what the chain ends in
}

// Credential is a certificate with its key, which was found good. It does not change, and shows its key to nobody who prints
// or logs it.
type Credential struct {
	Chain []byte   // PEM, nothing but certificates
	Key   []byte   // PEM
	Roots []string // PEM, one certificate each

	// Obtained is when the CA gave it. Its lifetime counts from there: CAs begin a certificate's validity a little in the past.
	Obtained, NotAfter time.Time
	// Issuer is the name of who signed it.
	Issuer string
}

// Format prints when the credential ends and who gave it, whatever the verb.
func (c *Credential) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "certificate of %s until %s", c.Issuer, c.NotAfter.Format(time.RFC3339))
}

// LogValue is what Format prints.
func (c *Credential) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }

// Lifetime is from when the credential was obtained until it ends.
func (c *Credential) Lifetime() time.Duration { return c.NotAfter.Sub(c.Obtained) }

// New returns the credential of a workload with the SPIFFE id, or why the parts are none at this moment: the key belongs to the
// certificate, the certificate says the id, is signed by the roots, has begun and has not ended. obtained is when the CA gave it.
func New(p Parts, id string, obtained, now time.Time) (*Credential, error) {
	leaf, err := Pair(p.Chain, p.Key)
	if err != nil {
		return nil, err
	}
	if err := identify(leaf, id); err != nil {
		return nil, err
	}
	if err := inTime(leaf, now); err != nil {
		return nil, err
	}
	chain, err := certificates(p.Chain)
	if err != nil {
		return nil, fmt.Errorf("the chain: %w", err)
	}
	roots, err := certificates(p.Roots)
	if err != nil {
		return nil, fmt.Errorf("the root at the end of the chain: %w", err)
	}
	if err := verify(leaf, chain[1:], roots, now); err != nil {
		return nil, err
	}
	c := &Credential{Key: slices.Clone(p.Key), Obtained: within(obtained, leaf.NotBefore.Add(-ahead), now), NotAfter: leaf.NotAfter, Issuer: leaf.Issuer.String()}
	for _, certificate := range chain {
		c.Chain = append(c.Chain, encode(certificate)...)
	}
	for _, root := range roots {
		c.Roots = append(c.Roots, string(encode(root)))
	}
	return c, nil
}

// within is t, or the end of a span that it is beyond: what somebody else says of a time may be of another clock.
func within(t, from, to time.Time) time.Time {
	if t.After(to) {
		return to
	}
	if t.Before(from) {
		return from
	}
	return t
}

// Pair returns the first certificate of a chain, to which key has to belong. Both are PEM.
func Pair(chain, key []byte) (*x509.Certificate, error) {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, fmt.Errorf("certificate and key: %w", err)
	}
	return pair.Leaf, nil
}

// identify says whether a certificate is for the workload. The CA signs who the token says it is, whatever was asked for.
func identify(leaf *x509.Certificate, id string) error {
	var names []string
	for _, uri := range leaf.URIs {
		names = append(names, uri.String())
	}
	if len(names) != 1 || names[0] != id {
		return fmt.Errorf("the certificate is for %q, this workload is %s: check the token's service account, and TRUST_DOMAIN, POD_NAMESPACE and SERVICE_ACCOUNT", names, id)
	}
	return nil
}

// inTime says whether a certificate has begun and has not ended.
func inTime(leaf *x509.Certificate, now time.Time) error {
	from, to := leaf.NotBefore, leaf.NotAfter
	if early := from.Sub(now); early > ahead {
		return fmt.Errorf("the certificate is valid from %s, %s ahead of this machine's clock: set the clock of the node or of the CA", from.Format(time.RFC3339), early.Round(time.Second))
	}
	if !now.Before(to) {
		return fmt.Errorf("the certificate has ended at %s, %s before this machine's clock: if it is new, set the clock of the node or of the CA",
			to.Format(time.RFC3339), now.Sub(to).Round(time.Second))
	}
	return nil
}

// verify says whether roots have signed a certificate, by way of others.
func verify(leaf *x509.Certificate, between, roots []*x509.Certificate, now time.Time) error {
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, root := range roots {
		options.Roots.AddCert(root)
	}
	for _, certificate := range between {
		options.Intermediates.AddCert(certificate)
	}
	if now.Before(leaf.NotBefore) {
		options.CurrentTime = leaf.NotBefore // see ahead
	}
	if _, err := leaf.Verify(options); err != nil {
		return fmt.Errorf("the certificate is not signed by the root at the end of its chain: %w", err)
	}
	return nil
}

// Roots returns the certificates of data, each in PEM. What is no certificate is left out, and err says so, as one bad root
// of many is no reason to trust none (RFC 5280, 4.1.2.2: CAs with negative serial numbers are around).
func Roots(data []byte) (roots []string, err error) {
	found, err := certificates(data)
	for _, root := range found {
		roots = append(roots, string(encode(root)))
	}
	return roots, err
}

// certificates returns those of data, in PEM, of which there has to be one, and an error for what is none.
func certificates(data []byte) (found []*x509.Certificate, err error) {
	var bad []error
	rest := data
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != certificateBlock {
			bad = append(bad, fmt.Errorf("a block in PEM that is no certificate but %q", block.Type))
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		found = append(found, certificate)
	}
	if len(found) == 0 && len(bad) == 0 {
		bad = append(bad, errors.New("no certificate in PEM"))
	}
	return found, errors.Join(bad...)
}

// encode writes a certificate in PEM.
func encode(certificate *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: certificate.Raw})
}

// Join puts pieces of PEM behind one another, each on a line of its own.
func Join(pieces []string) []byte {
	var all bytes.Buffer
	for _, piece := range pieces {
		all.WriteString(strings.TrimSpace(piece))
		all.WriteByte('\n')
	}
	return all.Bytes()
}
