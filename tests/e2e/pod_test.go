// Package e2e tests the built binaries from outside: real namespaces, real capture rules, a real
// Envoy, and no knowledge of the agent but its contract.
package e2e_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// atOnce is how long something may take that the contract calls "at once". It is generous,
// because the machine runs other tests meanwhile, and still far from any time-out of Envoy's.
const atOnce = 5 * time.Second

// Where the outside's servers are, and what they are called in its DNS.
var outside = map[string][]string{
	"aliyun.com":     {"198.51.100.10", "2001:db8::10"},
	"http.example":   {"198.51.100.11", "2001:db8::11"},
	"one.example":    {"198.51.100.21"},
	"two.example":    {"198.51.100.22"},
	"six.example":    {"2001:db8::30"},
	"plain.example":  {"198.51.100.40", "2001:db8::40"},
	"listed.example": {"198.51.100.50"},
}

// aliyun is the ServiceEntry of the ASM manual's chapter on DNS, as it stands there.
const aliyun = `apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata:
  name: mydnsproxying-sample
spec:
  hosts:
  - aliyun.com
  location: MESH_EXTERNAL
  ports:
  - number: 443
    name: https
    protocol: TLS
  resolution: DNS
`

// aliyunHTTP adds port 80 to the host of the manual's.
var aliyunHTTP = entry("aliyun-http", "aliyun.com", 80, "HTTP", "DNS")

// entry is a ServiceEntry with one host and one port.
func entry(name, host string, port int, protocol, resolution string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s}
spec:
  hosts: [%q]
  location: MESH_EXTERNAL
  ports: [{number: %d, name: %s-%d, protocol: %s}]
  resolution: %s
`, name, host, port, strings.ToLower(protocol), port, protocol, resolution)
}

// static is a ServiceEntry with one endpoint of its own.
func static(name, host string, port int, protocol, endpoint string, targetPort int) string {
	return strings.TrimSuffix(entry(name, host, port, protocol, "STATIC"), "\n") +
		fmt.Sprintf("\n  endpoints: [{address: %q, ports: {%s-%d: %d}}]\n", endpoint, strings.ToLower(protocol), port, targetPort)
}

// documents joins YAML documents to one file.
func documents(docs ...string) string { return strings.Join(docs, "---\n") }

// pod is a pod with capture, an agent and an outside with a name server.
type pod struct {
	*lab.Lab
	c     *lab.Container // the agent's
	dns   *lab.DNSServer
	agent *lab.Agent
}

// podOptions say what is unusual about a pod.
type podOptions struct {
	container lab.ContainerOptions
	agent     lab.AgentOptions
	files     map[string]string // of the configuration directory, before the start
	noCapture bool
	noAgent   bool
}

// newPod makes a pod whose agent is ready.
func newPod(t *testing.T, o podOptions) *pod {
	t.Helper()
	l := lab.New(t)
	p := &pod{Lab: l, dns: l.StartDNS(t, outside)}
	o.container.ReadOnly = true
	if o.container.Envoy == "" {
		o.container.Envoy = lab.EnvoyBinary(t)
	}
	p.c = l.NewContainer(t, o.container)
	for name, content := range o.files {
		p.c.Write(t, name, content)
	}
	if !o.noCapture {
		l.Capture(t)
	}
	if !o.noAgent {
		p.agent = p.c.StartAgent(t, o.agent)
		p.agent.WaitReady(t)
	}
	return p
}

// vip looks a host up as the application does and returns its VIP of the query's family.
func (p *pod) vip(t *testing.T, host string, qtype uint16) netip.Addr {
	t.Helper()
	want := netip.MustParsePrefix("240.240.0.0/16")
	if qtype == dns.TypeAAAA {
		want = netip.MustParsePrefix("2001:2::/48")
	}
	addrs, err := p.Pod.Lookup(host, qtype)
	if err != nil {
		t.Fatal(err)
	}
	if len(addrs) != 1 || !want.Contains(addrs[0]) {
		t.Fatalf("%s resolves to %v, want one address of %v", host, addrs, want)
	}
	return addrs[0]
}

// dial connects from a namespace and bounds everything done with the connection.
func dial(t *testing.T, n *lab.Namespace, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lab.Deadline)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatalf("connect to %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(lab.Deadline))
	return c
}

// dialHost looks a mesh host up and connects to its VIP.
func (p *pod) dialHost(t *testing.T, host string, port int) net.Conn {
	t.Helper()
	return dial(t, p.Pod, netip.AddrPortFrom(p.vip(t, host, dns.TypeA), uint16(port)).String())
}

// expect reads from c exactly what is wanted.
func expect(t *testing.T, c io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if err != nil || string(got) != want {
		t.Fatalf("read %q (%v), want %q", got[:n], err, want)
	}
}

// send writes to c.
func send(t *testing.T, c io.Writer, data string) {
	t.Helper()
	if _, err := io.WriteString(c, data); err != nil {
		t.Fatalf("write %q: %v", data, err)
	}
}

// mustRefuse demands that a connection is refused, reset or closed at once and without a byte.
func mustRefuse(t *testing.T, n *lab.Namespace, addr string) {
	t.Helper()
	if err := refused(t.Context(), n, addr, ""); err != nil {
		t.Errorf("%s: %v", addr, err)
	}
}

// refused returns nil when a connection, on which request is sent, is ended at once without a byte.
func refused(ctx context.Context, n *lab.Namespace, addr, request string) error {
	ctx, cancel := context.WithTimeout(ctx, atOnce)
	defer cancel()
	c, err := n.Dial(ctx, "tcp", addr)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("neither refused nor accepted within %v", atOnce)
		}
		return nil
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(atOnce))
	_, _ = io.WriteString(c, request)
	got, err := io.ReadAll(c)
	if len(got) > 0 {
		return fmt.Errorf("answered with %q", got)
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("still open after %v: %w", atOnce, err)
	}
	return nil
}

// handshake is TLS over c with the given server name.
func handshake(t *testing.T, ca *lab.CA, c net.Conn, serverName string) *tls.Conn {
	t.Helper()
	client := tls.Client(c, &tls.Config{RootCAs: ca.Pool(), ServerName: serverName})
	if err := client.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("TLS handshake with %s: %v", serverName, err)
	}
	return client
}

// get does one HTTP/1.1 request over c and returns the key=value lines of lab.ServeHTTP.
func get(t *testing.T, c io.ReadWriter, host string) map[string]string {
	t.Helper()
	send(t, c, "GET /path?q=1 HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the answer of %s: %v, after %q", host, err, answer)
	}
	if !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Fatalf("%s answers %q", host, answer)
	}
	return fields(string(answer))
}

// fields reads key=value lines.
func fields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if key, value, found := strings.Cut(strings.TrimSpace(line), "="); found {
			m[key] = value
		}
	}
	return m
}

// eventually is lab.Eventually with the ordinary deadline.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, what, check)
}

// contains returns an error unless text has every word.
func contains(text string, words ...string) error {
	for _, w := range words {
		if !strings.Contains(text, w) {
			return fmt.Errorf("no %q in:\n%s", w, text)
		}
	}
	return nil
}

// firstLine connects from the pod and returns the first line that the server says.
func firstLine(p *pod, addr string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), atOnce)
	defer cancel()
	c, err := p.Pod.Dial(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(atOnce))
	return bufio.NewReader(c).ReadString('\n')
}
