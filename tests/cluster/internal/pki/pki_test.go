package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestWrite has a client and the server talk by what was written, each certain of the other.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, Config{
		Server: "https://127.0.0.1:6443", Node: "node1", World: []string{"aliyun.com", "*.aliyun.com"},
		Names: []string{"kubernetes"}, IPs: []net.IP{net.ParseIP("127.0.0.1")},
	}); err != nil {
		t.Fatal(err)
	}
	certificate := func(name string) *x509.Certificate {
		t.Helper()
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf
	}
	pool := func(name string) *x509.CertPool {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(text) {
			t.Fatalf("%s: no certificate", name)
		}
		return roots
	}
	for _, tc := range []struct {
		cert, ca, name string
		usage          x509.ExtKeyUsage
		want           bool
	}{
		{"apiserver", "ca.crt", "127.0.0.1", x509.ExtKeyUsageServerAuth, true},
		{"apiserver", "ca.crt", "kubernetes", x509.ExtKeyUsageServerAuth, true},
		{"apiserver", "world-ca.crt", "kubernetes", x509.ExtKeyUsageServerAuth, false},
		{"world", "world-ca.crt", "aliyun.com", x509.ExtKeyUsageServerAuth, true},
		{"world", "world-ca.crt", "www.aliyun.com", x509.ExtKeyUsageServerAuth, true},
		{"world", "ca.crt", "aliyun.com", x509.ExtKeyUsageServerAuth, false},
		{"kubelet", "ca.crt", "", x509.ExtKeyUsageClientAuth, true},
		{"kubelet", "ca.crt", "", x509.ExtKeyUsageServerAuth, false},
	} {
		_, err := certificate(tc.cert).Verify(x509.VerifyOptions{Roots: pool(tc.ca), DNSName: tc.name, KeyUsages: []x509.ExtKeyUsage{tc.usage}})
		if (err == nil) != tc.want {
			t.Errorf("%s by %s for %q: %v", tc.cert, tc.ca, tc.name, err)
		}
	}
	if name := certificate("kubelet").Subject; name.CommonName != "system:node:node1" || len(name.Organization) != 1 || name.Organization[0] != "system:nodes" {
		t.Errorf("the kubelet is %v", name)
	}
}

// TestKubeconfig wants everything in the file itself: it is read in the node and outside, where the paths differ.
func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, Config{Server: "https://127.0.0.1:6443", Node: "n", World: []string{"w"}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "admin.kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []struct {
			Cluster struct {
				Server string
				CA     []byte `json:"certificate-authority-data"`
			}
		}
		Users []struct {
			User struct {
				Cert []byte `json:"client-certificate-data"`
				Key  []byte `json:"client-key-data"`
			}
		}
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	if c := config.Clusters[0].Cluster; c.Server != "https://127.0.0.1:6443" {
		t.Errorf("server %q", c.Server)
	} else if block, _ := pem.Decode(c.CA); block == nil {
		t.Error("no authority")
	}
	if _, err := tls.X509KeyPair(config.Users[0].User.Cert, config.Users[0].User.Key); err != nil {
		t.Error(err)
	}
}
