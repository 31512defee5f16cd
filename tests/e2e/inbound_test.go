package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"understudy.mesh/tests/lab"
)

// podAddrs are the pod's two addresses.
var podAddrs = []string{lab.PodIP, lab.PodIPv6}

func testInboundHTTP(t *testing.T, p *pod, _ *lab.CA) {
	for _, ip := range podAddrs {
		keepAlive(t, dial(t, p.Out, net.JoinHostPort(ip, "8080")))
	}
	if got := get(t, dial(t, p.Pod, net.JoinHostPort(lab.PodIP, "8080")), "app"); got["server"] != "app" {
		t.Errorf("the pod calls itself: %v", got)
	}
	http2(t, p.Out, net.JoinHostPort(lab.PodIP, "8080"), "HTTP/2.0")
	http10(t, dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8080")))
	upgrade(t, dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8081")))
	headerCase(t, dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8081")))
	inboundPool(t, p)
	for _, host := range []string{"app", "app:8080", "10.77.0.2", "[fd77::2]:8080", "UPPER.example", "under_score", "a.b.c.d.e", "*"} {
		got := get(t, dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8080")), host)
		if got["host"] != host || got["server"] != "app" {
			t.Errorf("Host %q: the application saw %v", host, got)
		}
	}
}

// keepAlive does two requests on one connection, the second with a body.
func keepAlive(t *testing.T, c net.Conn) {
	t.Helper()
	r := bufio.NewReader(c)
	for _, request := range []string{
		"GET /a?b=%20c HTTP/1.1\r\nHost: app\r\n\r\n",
		"POST /a?b=%20c HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody",
	} {
		send(t, c, request)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("read the answer to %q: %v", request, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("read the body for %q: %v", request, err)
		}
		got := fields(string(body))
		method, _, _ := strings.Cut(request, " ")
		if resp.StatusCode != http.StatusOK || got["method"] != method || got["uri"] != "/a?b=%20c" || got["proto"] != "HTTP/1.1" {
			t.Errorf("%q: status %d, the server saw %v", request, resp.StatusCode, got)
		}
		if method == "POST" && got["body"] != "body" {
			t.Errorf("POST: the server saw the body %q", got["body"])
		}
	}
}

// inboundPool demands that clients which come and go do not leave a connection to the application
// behind for each: an application that closes none itself would fill Envoy's descriptors.
func inboundPool(t *testing.T, p *pod) {
	t.Helper()
	const clients = 40
	l := &countingListener{Listener: p.Pod.Listen(t, "[::]:8090")}
	lab.ServeHTTP(t, l, "app")
	for range clients {
		c := dial(t, p.Out, net.JoinHostPort(lab.PodIP, "8090"))
		if got := get(t, c, "app"); got["server"] != "app" {
			t.Fatalf("port 8090: %v", got)
		}
		must(t, c.Close())
	}
	if n := l.accepted.Load(); n > clients/2 {
		t.Errorf("%d clients, one after another, left %d connections to the application", clients, n)
	}
}

type countingListener struct {
	net.Listener
	accepted atomic.Int32
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.accepted.Add(1)
	return c, err
}

// http2 does a request over HTTP/2 with prior knowledge, and demands that it arrives as proto.
func http2(t *testing.T, n *lab.Namespace, addr, proto string) {
	t.Helper()
	transport := n.HTTP2()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: lab.Deadline}
	resp, err := client.Get("http://" + addr + "/h2")
	if err != nil {
		t.Errorf("HTTP/2 to %s: %v", addr, err)
		return
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if got := fields(string(body)); resp.ProtoMajor != 2 || got["proto"] != proto || got["uri"] != "/h2" {
		t.Errorf("HTTP/2 to %s: answer is %s, the server saw %v", addr, resp.Proto, got)
	}
}

// http10 does a request without a Host, as old health checks do.
func http10(t *testing.T, c net.Conn) {
	t.Helper()
	send(t, c, "GET /old HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || contains(string(answer), " 200 ", "uri=/old") != nil {
		t.Errorf("HTTP/1.0: %q (%v)", answer, err)
	}
}

// upgrade switches to websocket and sends bytes that are no HTTP.
func upgrade(t *testing.T, c net.Conn) {
	t.Helper()
	send(t, c, "GET /ws HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Errorf("upgrade: %v, %v", resp, err)
		return
	}
	send(t, c, "\x82\x03abc")
	expect(t, r, "\x82\x03abc")
}

// headerCase demands that names of headers arrive as they were written, in both directions, and
// that none is taken away.
func headerCase(t *testing.T, c net.Conn) {
	t.Helper()
	send(t, c, "GET / HTTP/1.1\r\nHost: app\r\nX-cAsE: Kept\r\nlower-case: v\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("header case: %v", err)
	}
	head, seen, _ := strings.Cut(string(answer), "\r\n\r\n")
	if err := contains(seen, "\r\nX-cAsE: Kept\r\n", "\r\nlower-case: v\r\n", "\r\nAccept-Encoding: identity\r\n", "GET / HTTP/1.1\r\n"); err != nil {
		t.Errorf("the request's headers: %v", err)
	}
	if err := contains(head, "\r\nX-MiXeD-Case: kept"); err != nil {
		t.Errorf("the answer's headers: %v", err)
	}
}

func testInboundTCP(t *testing.T, p *pod, ca *lab.CA) {
	for _, ip := range podAddrs {
		at := func(port string) string { return net.JoinHostPort(ip, port) }

		banner := dial(t, p.Out, at("2525"))
		expect(t, banner, "220 app ESMTP\r\n")
		send(t, banner, "EHLO client\r\n")
		expect(t, banner, "EHLO client\r\n")

		echo := dial(t, p.Out, at("9000"))
		send(t, echo, "\x00\x01binary\xff")
		expect(t, echo, "\x00\x01binary\xff")

		halfClose(t, dial(t, p.Out, at("9002")))

		got := get(t, handshake(t, ca, dial(t, p.Out, at("8443")), "app.example"), "app.example")
		if got["server"] != "app-tls" {
			t.Errorf("TLS to the application at %s: %v", ip, got)
		}
	}
	testSource(t, p)
}

// halfClose sends, closes its direction, and still gets the answer.
func halfClose(t *testing.T, c net.Conn) {
	t.Helper()
	const line = "sixty-four bytes of something that is neither HTTP nor TLS......\n"
	const lines = 5000 // more than the buffers on the way hold
	send(t, c, strings.Repeat(line, lines))
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if want := fmt.Sprintf("%d bytes, <nil>\n", lines*len(line)); err != nil || string(got) != want {
		t.Errorf("after half-close: %q (%v), want %q", got, err, want)
	}
}

// testSource demands that the application sees forwarded traffic come from 127.0.0.6 or ::6, as
// with Istio, on its own port.
func testSource(t *testing.T, p *pod) {
	t.Helper()
	for ip, source := range map[string]string{lab.PodIP: "127.0.0.6", lab.PodIPv6: "::6"} {
		got, err := io.ReadAll(dial(t, p.Out, net.JoinHostPort(ip, "9001")))
		host, _, split := net.SplitHostPort(strings.TrimSpace(string(got)))
		if err != nil || split != nil || strings.TrimPrefix(host, "::ffff:") != source {
			t.Errorf("the application sees %q (%v) as the source of traffic to %s, want %s", got, err, ip, source)
		}
	}
}

// testOwnPorts demands that captured inbound traffic is never forwarded to a port of the agent's
// or Envoy's, and that a direct connection to the capture ports is refused and not looped.
func testOwnPorts(t *testing.T, p *pod, _ *lab.CA) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, ip := range podAddrs {
		for _, port := range []string{lab.AdminPort, lab.OutboundPort, lab.InboundPort, lab.DNSPort} {
			if err := refused(t.Context(), p.Out, net.JoinHostPort(ip, port), request); err != nil {
				t.Errorf("from outside the pod to %s port %s: %v", ip, port, err)
			}
		}
	}
	for _, ip := range []string{"127.0.0.1", "::1", lab.PodIP, lab.PodIPv6} {
		for _, port := range []string{lab.OutboundPort, lab.InboundPort} {
			if err := refused(t.Context(), p.Pod, net.JoinHostPort(ip, port), request); err != nil {
				t.Errorf("inside the pod to %s port %s: %v", ip, port, err)
			}
		}
	}
}

// testAccess demands that what changes the pod's fate answers on loopback only, where Envoy's
// source address of forwarded traffic is not loopback.
func testAccess(t *testing.T, p *pod, _ *lab.CA) {
	for _, ip := range podAddrs {
		for _, path := range []string{"/drain", "/quitquitquit", "/debug/pprof/"} {
			url := "http://" + net.JoinHostPort(ip, lab.StatusPort) + path
			status, body, err := p.Out.Request(http.MethodPost, url)
			if err == nil && status < 400 {
				t.Errorf("POST %s from outside the pod: %d %s", url, status, body)
			}
		}
		if status, _, err := p.Out.Get("http://" + net.JoinHostPort(ip, lab.HealthPort) + "/healthz/ready"); err != nil || status != http.StatusOK {
			t.Errorf("the kubelet's probe at %s: %d, %v", ip, status, err)
		}
		if err := refused(t.Context(), p.Out, net.JoinHostPort(ip, lab.AdminPort), "POST /quitquitquit HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Errorf("Envoy's admin from outside: %v", err)
		}
	}
	for _, port := range []string{lab.StatusPort, lab.AdminPort} {
		c, err := p.Pod.DialFrom(t.Context(), "tcp", "127.0.0.6", "127.0.0.1:"+port)
		if err != nil {
			continue // refused is as good
		}
		defer c.Close()
		send(t, c, "POST /quitquitquit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		answer, _ := io.ReadAll(c)
		if strings.HasPrefix(string(answer), "HTTP/1.1 2") {
			t.Errorf("127.0.0.6 may stop the agent on port %s: %q", port, answer)
		}
	}
	if err := p.agent.Ready(); err != nil {
		t.Errorf("after all this: %v", err)
	}
}
