package identity

import (
	"errors"
	"net"
	"strings"
	"testing"

	"understudy.mesh/tests/catest"
)

// plainAddress is where a CA is reached in plain text, on an address of the loopback that nobody else has.
const plainAddress = "127.21.5.10" + ":15010"

// TestTry: the authority is asked once, and whoever tries hears what came, or why nothing did.
func TestTry(t *testing.T) {
	l, err := net.Listen("tcp", plainAddress)
	if err != nil {
		t.Fatal(err)
	}
	ca := catest.New(t, "the mesh's")
	ca.ServeOn(l)
	s := settings(t, "CA_ADDR="+plainAddress, "SERVICE_ACCOUNT=app", "POD_NAMESPACE=shop", "ECC_SIGNATURE_ALGORITHM=ECDSA")
	got, err := Try(t.Context(), s)
	if err != nil || !strings.HasPrefix(got, `signs spiffe://cluster.local/ns/shop/sa/app by "`) || !strings.Contains(got, "the mesh's") {
		t.Errorf("%q, %v", got, err)
	}
	ca.Refuse(errors.New("not yours"))
	if got, err := Try(t.Context(), s); err == nil || !strings.Contains(err.Error(), "the CA at "+plainAddress+": ") || !strings.Contains(err.Error(), "not yours") {
		t.Errorf("%q, %v", got, err)
	}
	if n := len(ca.Requests()); n != 2 {
		t.Errorf("the CA was asked %d times, want once each", n)
	}
}

// TestTryWithoutAuthority ends with the first attempt.
func TestTryWithoutAuthority(t *testing.T) {
	if got, err := Try(t.Context(), settings(t, "CA_ADDR=127.0.0.1:1", "SERVICE_ACCOUNT=app")); err == nil || !strings.Contains(err.Error(), "the CA at 127.0.0.1:1: ") {
		t.Errorf("%q, %v", got, err)
	}
}
