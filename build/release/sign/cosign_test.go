package sign

import (
	"crypto/elliptic"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

// TestCosign lets cosign itself verify what is signed, and what was changed afterwards, without a network. It takes
// six minutes of a processor to build, so it is used where it is installed; TestFile and TestLayout verify with
// Sigstore's library everywhere.
func TestCosign(t *testing.T) {
	if _, err := exec.LookPath("cosign"); err != nil {
		t.Skip("no cosign in PATH: go install github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3")
	}
	key, _, _ := newKey(t)
	dir := t.TempDir()
	sums := []byte("0123  pilot-agent\n")
	bundle, err := key.Bundle(sums)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cosign.pub": key.Public(), "SHA256SUMS": sums, "SHA256SUMS.sigstore.json": bundle, "changed": append([]byte("1"), sums[1:]...)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, other, err := cryptoutils.GeneratePEMEncodedECDSAKeyPair(elliptic.P256(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other.pub"), other, 0o600); err != nil {
		t.Fatal(err)
	}
	image, err := random.Index(512, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteLayout(filepath.Join(dir, "image"), image, "understudy/proxy", "v1.2.3", key); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		good      bool
		arguments []string
	}{
		{true, []string{"verify-blob", "--key", "cosign.pub", "--bundle", "SHA256SUMS.sigstore.json", "--insecure-ignore-tlog=true", "SHA256SUMS"}},
		{false, []string{"verify-blob", "--key", "cosign.pub", "--bundle", "SHA256SUMS.sigstore.json", "--insecure-ignore-tlog=true", "changed"}},
		{false, []string{"verify-blob", "--key", "other.pub", "--bundle", "SHA256SUMS.sigstore.json", "--insecure-ignore-tlog=true", "SHA256SUMS"}},
		{true, []string{"verify", "--key", "cosign.pub", "--insecure-ignore-tlog=true", "--local-image", "image"}},
		{false, []string{"verify", "--key", "other.pub", "--insecure-ignore-tlog=true", "--local-image", "image"}},
	} {
		cmd := exec.CommandContext(t.Context(), "cosign", tc.arguments...)
		cmd.Dir = dir
		// An offline cosign must not look for Sigstore's trust root at home either.
		cmd.Env = append(os.Environ(), "HOME="+dir)
		if out, err := cmd.CombinedOutput(); (err == nil) != tc.good {
			t.Errorf("%v: %v\n%s", cmd, err, out)
		}
	}
}
