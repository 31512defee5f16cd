package lab

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ServeTCP calls handle in a goroutine for every connection, and closes the connection after it.
// It ends with the listener.
func ServeTCP(ln net.Listener, handle func(net.Conn)) {
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(4 * Deadline))
				handle(c)
			}()
		}
	}()
}

// Echo sends back what it gets, until the peer's end of file.
func Echo(c net.Conn) { _, _ = io.Copy(c, c) }

// Banner speaks first, as SMTP and MySQL do, and then echoes lines.
func Banner(banner string) func(net.Conn) {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, banner+"\r\n")
		Echo(c)
	}
}

// Peer tells the client the address that the server sees it at.
func Peer(c net.Conn) { _, _ = fmt.Fprintln(c, c.RemoteAddr()) }

// CountThenReply reads until the peer's end of file and only then answers, with the number of
// bytes: it tests that a half-closed connection still carries the other direction.
func CountThenReply(c net.Conn) {
	n, err := io.Copy(io.Discard, c)
	_, _ = fmt.Fprintf(c, "%d bytes, %v\n", n, err)
}

// seenFormat is the body of ServeHTTP's answers: what the server saw of the request.
const seenFormat = "server=%s\nproto=%s\nmethod=%s\nhost=%s\nuri=%s\npeer=%s\nbody=%s\n"

// ServeHTTP serves HTTP/1 and HTTP/2 with prior knowledge until the test ends. Every answer has
// status 200 and a body of key=value lines: server (the given name), proto, method, host, uri,
// peer, body.
func ServeHTTP(t T, ln net.Listener, name string) {
	t.Helper()
	server := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, seenFormat, name, r.Proto, r.Method, r.Host, r.RequestURI, r.RemoteAddr, body)
	})}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetHTTP2(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = server.Serve(ln) }()
	t.Cleanup(func() { _ = server.Close() })
}

// RawHTTP answers every HTTP/1 request with its own head, byte for byte, as the body. It keeps
// connections alive (unless asked not to) and accepts an upgrade, after which it echoes.
func RawHTTP(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		var head strings.Builder
		for !strings.HasSuffix(head.String(), "\r\n\r\n") {
			line, err := r.ReadString('\n')
			head.WriteString(line)
			if err != nil {
				return
			}
		}
		lower := strings.ToLower(head.String())
		if strings.Contains(lower, "\r\nupgrade: websocket") {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			_, _ = io.Copy(c, r)
			return
		}
		_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-MiXeD-Case: kept\r\nContent-Length: %d\r\n\r\n%s", head.Len(), &head)
		if err != nil || strings.Contains(lower, "\r\nconnection: close") {
			return
		}
	}
}

// CA is a certificate authority that exists for one test.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

// NewCA makes a certificate authority.
func NewCA(t T) *CA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "end-to-end test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("lab: make the CA's key: %v", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatalf("lab: make the CA: %v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatalf("lab: read the CA back: %v", err)
	}
	return &CA{cert: cert, key: key, pem: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// Pool is what a client of the CA's servers trusts.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// WriteFile writes the CA's certificate for programs like curl.
func (ca *CA) WriteFile(t T, path string) {
	t.Helper()
	if err := os.WriteFile(path, ca.pem, 0o644); err != nil {
		t.Fatalf("lab: write the CA: %v", err)
	}
}

// Server returns the TLS configuration of a server that is all the hosts.
func (ca *CA) Server(t T, hosts ...string) *tls.Config {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("lab: make the key of %s: %v", hosts[0], err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatalf("lab: make the certificate of %s: %v", hosts[0], err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

// ServerFiles writes what Server has to tls.crt and tls.key of a directory, each replaced whole.
func (ca *CA) ServerFiles(t T, dir string, hosts ...string) {
	t.Helper()
	made := ca.Server(t, hosts...).Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(made.PrivateKey)
	if err != nil {
		t.Fatalf("lab: encode the key of %s: %v", hosts[0], err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: made.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		path := filepath.Join(dir, name)
		err := os.WriteFile(path+".new", pem.EncodeToMemory(block), 0o600)
		if err == nil {
			err = os.Rename(path+".new", path)
		}
		if err != nil {
			t.Fatalf("lab: write the certificate of %s: %v", hosts[0], err)
		}
	}
}
