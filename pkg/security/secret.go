package security

import (
	"bytes"
	"fmt"
	"log/slog"
)

// Names of secrets, as istiod's configuration has them.
const (
	Workload = "default" // the workload's certificate with its key
	Roots    = "ROOTCA"  // the roots by which peers are known

	certPrefix = "file-cert:" // <chain>~<key>
	rootPrefix = "file-root:" // <roots>
	systemRoot = rootPrefix + "system"
)

// Secret is one secret as Envoy gets it, in PEM: a certificate with its key, or roots. It shows its key to nobody who prints
// or logs it.
type Secret struct {
	Chain, Key []byte // the certificate first
	Roots      []byte
	CRL        []byte // what the roots' owners have revoked; beside Roots
}

// Equal says whether two secrets are the same, byte by byte.
func (s Secret) Equal(o Secret) bool {
	return bytes.Equal(s.Chain, o.Chain) && bytes.Equal(s.Key, o.Key) && bytes.Equal(s.Roots, o.Roots) && bytes.Equal(s.CRL, o.CRL)
}

// Format prints what kind of a secret it is, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) {
	if s.Key != nil {
		fmt.Fprint(f, "certificate and key")
		return
	}
	fmt.Fprint(f, "roots")
}

// LogValue is what Format prints.
func (s Secret) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(s)) }
