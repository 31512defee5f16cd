package build

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/pkg/mesh/internal/document"
	"understudy.mesh/tests/realenvoy"
)

// envoyGroup is the group that the rules below let pass, as Istio's let uid 1337 pass.
const envoyGroup = 1337

const liveConfig = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db1}
spec:
  hosts: [db1.x]
  ports: [{number: 3306, name: mysql, protocol: TCP, targetPort: 33061}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db2}
spec:
  hosts: [db2.x]
  ports: [{number: 3306, name: mysql, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1, ports: {mysql: 33062}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: [web.x]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8081}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shared}
spec:
  hosts: [one.shared.x, two.shared.x]
  addresses: [10.88.0.9]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8082}, {number: 443, name: tls, protocol: TLS, targetPort: 8443}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild}
spec:
  hosts: ["*.wild.x"]
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
  resolution: NONE
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: cidr}
spec:
  hosts: [cidr.x]
  addresses: [10.88.5.0/24]
  ports: [{number: 3306, name: mysql, protocol: TCP, targetPort: 33062}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1}]
`

// TestLive sends real traffic through a real Envoy, in a network namespace of its own where iptables captures the
// test's connections: to 240.240.0.0/16 and 10.88.0.0/16 as outbound, to 10.77.0.0/16 as inbound.
func TestLive(t *testing.T) {
	if os.Geteuid() != 0 {
		needs(t, "root, to make a network namespace")
	}
	envoy := realenvoy.Path(t, root)
	enterNamespace(t)
	serveAll(t)
	for _, registryOnly := range []bool{false, true} {
		o := testOptions()
		o.IPv6, o.RegistryOnly = false, registryOnly
		r, report := load(t, liveConfig, o)
		for _, d := range report.Documents {
			if d.Status != "ok" {
				t.Fatalf("%+v", d)
			}
		}
		out := build(t, r, o)
		stop := startEnvoy(t, envoy, bootstrapFile(t, out))
		vips := map[string]string{}
		for _, h := range out.Hosts {
			vips[h.Name] = h.Addrs[0].String()
		}
		checkOutbound(t, vips, registryOnly)
		checkInbound(t)
		stop()
	}
}

// enterNamespace moves the test's thread into a new network namespace, which ends with the thread: it stays locked.
func enterNamespace(t *testing.T) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("unshare: %v", err)
	}
	for _, line := range []string{
		"ip link set lo up",
		"ip addr add 10.99.0.1/32 dev lo", "ip addr add 10.77.0.1/32 dev lo", "ip addr add 10.88.0.1/32 dev lo",
		"ip route add 240.240.0.0/16 dev lo", "ip route add 10.88.0.0/16 dev lo",
		fmt.Sprintf("iptables -w -t nat -A OUTPUT -m owner --gid-owner %d -j RETURN", envoyGroup),
		"iptables -w -t nat -A OUTPUT -p tcp -d 10.77.0.0/16 -j REDIRECT --to-ports 15006",
		"iptables -w -t nat -A OUTPUT -p tcp -d 240.240.0.0/16 -j REDIRECT --to-ports 15001",
		"iptables -w -t nat -A OUTPUT -p tcp -d 10.88.0.0/16 -j REDIRECT --to-ports 15001",
	} {
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
}

func startEnvoy(t *testing.T, path, config string) (stop func()) {
	t.Helper()
	var log strings.Builder
	cmd := exec.Command(path, "-c", config, "--disable-hot-restart", "--concurrency", "1", "-l", "warning")
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: 0, Gid: envoyGroup}, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		if c, err := net.Dial("tcp", "127.0.0.1:15006"); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			t.Fatalf("envoy does not listen:\n%s", log.String())
		}
		<-time.After(20 * time.Millisecond)
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed"
		if strings.Contains(log.String(), "Deprecated") {
			t.Errorf("envoy warns:\n%s", log.String())
		}
	}
}

// serveAll starts the servers: banner servers speak first, the others tell who they are and what they saw.
func serveAll(t *testing.T) {
	banner := func(addr, text string) { serve(t, addr, func(c net.Conn) { fmt.Fprintln(c, text) }) }
	banner("10.99.0.1:33061", "db1")
	banner("10.99.0.1:33062", "db2")
	banner("10.88.0.1:25", "smtp")
	banner("10.77.0.1:3306", "inbound db")
	banner("10.77.0.1:15020", "agent")
	serve(t, "10.77.0.1:8090", func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nraw bytes")
		}
	})
	web(t, "10.99.0.1:8081", "web")
	web(t, "10.99.0.1:8082", "shared")
	web(t, "10.88.0.1:80", "original")
	web(t, "10.77.0.1:8080", "app")
	secure := &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	tlsBanner := func(addr, text string) {
		serve(t, addr, func(c net.Conn) {
			s := tls.Server(c, secure)
			fmt.Fprintln(s, text)
			_ = s.CloseWrite()
		})
	}
	tlsBanner("10.99.0.1:8443", "shared tls")
	tlsBanner("10.88.0.1:443", "original tls")
}

func listen(t *testing.T, addr string) net.Listener {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func serve(t *testing.T, addr string, handle func(net.Conn)) {
	l := listen(t, addr)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); handle(c) }()
		}
	}()
}

// web serves HTTP/1 and cleartext HTTP/2; its answer is its name, the protocol, and the request's headers.
func web(t *testing.T, addr, name string) {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-cAsE"] = []string{"kept"}
		w.Header().Set("Server", name)
		fmt.Fprintf(w, "%s %s %s host=%s from=%s", name, r.Method, r.RequestURI, r.Host, strings.Split(r.RemoteAddr, ":")[0])
		for k := range r.Header {
			fmt.Fprintf(w, " %s", k)
		}
	})}
	l := listen(t, addr)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
}

func selfSigned(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// talk connects, writes request, and returns all that comes back until the other end closes.
func talk(t *testing.T, addr, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, request); err != nil {
		return ""
	}
	answer, err := io.ReadAll(c)
	if os.IsTimeout(err) {
		t.Errorf("%s: %v", addr, err)
	}
	return string(answer)
}

// talkTLS is talk over TLS, with a server name.
func talkTLS(t *testing.T, addr, sni string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	s := tls.Client(c, &tls.Config{ServerName: sni, InsecureSkipVerify: true})
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(patience))
	answer, err := bufio.NewReader(s).ReadString('\n')
	if os.IsTimeout(err) {
		t.Errorf("%s: %v", addr, err)
	}
	return answer
}

func get(host string) string {
	return "GET /p HTTP/1.1\r\nHost: " + host + "\r\nConnection: close\r\n\r\n"
}

func checkOutbound(t *testing.T, vips map[string]string, registryOnly bool) {
	t.Helper()
	unknown := func(answer string) string {
		if registryOnly {
			return ""
		}
		return answer
	}
	for _, c := range []struct{ name, got, want string }{
		{"two TCP hosts on one port, the first", talk(t, vips["db1.x"]+":3306", ""), "db1"},
		{"two TCP hosts on one port, the second", talk(t, vips["db2.x"]+":3306", ""), "db2"},
		{"HTTP to a VIP, any Host", talk(t, vips["web.x"]+":80", get("whatever.x")), "web GET /p host=whatever.x from=10.99.0.1"},
		{"HTTP/1.0 without a Host", talk(t, vips["web.x"]+":80", "GET / HTTP/1.0\r\n\r\n"), "web GET / "},
		{"undeclared port of a VIP", talk(t, vips["web.x"]+":81", ""), ""},
		{"undeclared port of a VIP that a wildcard has", talk(t, vips["db1.x"]+":80", get("a.wild.x")), ""},
		{"VIP of nobody", talk(t, "240.240.9.9:3306", ""), ""},
		{"shared address, by Host", talk(t, "10.88.0.9:80", get("two.shared.x:80")), "shared GET /p host=two.shared.x:80"},
		{"shared address, by SNI", talkTLS(t, "10.88.0.9:443", "one.shared.x"), "shared tls"},
		{"wildcard, by Host", talk(t, "10.88.0.1:80", get("a.wild.x")), "original GET /p host=a.wild.x"},
		{"wildcard, by SNI", talkTLS(t, "10.88.0.1:443", "a.b.wild.x"), "original tls"},
		{"CIDR", talk(t, "10.88.5.7:3306", ""), "db2"},
		{"unknown Host", talk(t, "10.88.0.1:80", get("other.x")), map[bool]string{true: "502 Bad Gateway", false: "original GET /p host=other.x"}[registryOnly]},
		{"unknown SNI", talkTLS(t, "10.88.0.1:443", "other.x"), unknown("original tls")},
		{"unknown destination, server first", talk(t, "10.88.0.1:25", ""), unknown("smtp")},
		{"direct connection to 15001", talk(t, "127.0.0.1:15001", ""), ""},
	} {
		checkAnswer(t, c.name, c.got, c.want)
	}
}

func checkInbound(t *testing.T) {
	t.Helper()
	app := talk(t, "10.77.0.1:8080", "GET /a//b/../c?d HTTP/1.1\r\nHost: \r\nx-lOwEr_under: 1\r\nConnection: close\r\n\r\n")
	for _, c := range []struct{ name, got, want string }{
		{"HTTP/1.1, empty Host, odd path", app, "app GET /a//b/../c?d host= from=127.0.0.6"},
		{"header names keep their case", app, "X-cAsE: kept"},
		{"the server's name stays", app, "Server: app"},
		{"HTTP/1.0 without a Host", talk(t, "10.77.0.1:8080", "GET / HTTP/1.0\r\n\r\n"), "app GET / "},
		{"WebSocket", talk(t, "10.77.0.1:8090", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), "raw bytes"},
		{"large header", talk(t, "10.77.0.1:8080", "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("x", 200<<10)+"\r\nConnection: close\r\n\r\n"), "app GET /"},
		{"server first", talk(t, "10.77.0.1:3306", ""), "inbound db"},
		{"the agent's port", talk(t, "10.77.0.1:15020", ""), ""},
		{"direct connection to 15006", talk(t, "127.0.0.1:15006", get("a")), ""},
		{"HTTP/2", talkHTTP2(t, "10.77.0.1:8080", "h2.x"), "app GET /h2 host=h2.x"},
	} {
		checkAnswer(t, c.name, c.got, c.want)
	}
	for _, added := range []string{"X-Request-Id", "X-Envoy", "X-Forwarded-For", "x-envoy"} {
		if strings.Contains(app, added) {
			t.Errorf("Envoy added %s: %s", added, app)
		}
	}
}

// talkHTTP2 makes one request for /h2 over cleartext HTTP/2.
func talkHTTP2(t *testing.T, addr, host string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr) // here: the transport would dial from a thread of another namespace
	if err != nil {
		t.Fatal(err)
	}
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols, DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + host + "/h2")
	if err != nil {
		t.Errorf("HTTP/2: %v", err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("HTTP/2: %v", err)
	}
	return string(body)
}

// checkAnswer wants an answer that contains want; want "" is a connection that was closed without an answer.
func checkAnswer(t *testing.T, name, got, want string) {
	t.Helper()
	if (want == "") != (got == "") || !strings.Contains(got, want) {
		t.Errorf("%s: answer %q, want %q", name, document.Abridge(got), want)
	}
}
