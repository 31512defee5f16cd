package build

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	"github.com/miekg/dns"
	"understudy.mesh/tests/realenvoy"
)

const dynamicConfig = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: dynamic}
spec:
  hosts: ["*.dyn.x"]
  ports:
  - {number: 80, name: http, protocol: HTTP}
  - {number: 8088, name: http-alt, protocol: HTTP}
  - {number: 8089, name: grpc, protocol: GRPC}
  - {number: 443, name: tls, protocol: TLS}
  - {number: 9443, name: https-alt, protocol: HTTPS}
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: own}
spec:
  hosts: ["*.own.x"]
  addresses: [10.88.0.9]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: neighbour}
spec:
  hosts: [static.dyn.x]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8081}]
  resolution: STATIC
  endpoints: [{address: 10.99.0.1}]
`

// TestLiveDynamic sends traffic to wildcards of resolution DYNAMIC_DNS: what Host and SNI name is looked up, and the
// service's port of it is called, whatever address the application had dialled.
func TestLiveDynamic(t *testing.T) {
	if os.Geteuid() != 0 {
		needs(t, "root, to make a network namespace")
	}
	envoy := realenvoy.Path(t, root)
	enterNamespace(t)
	web(t, "10.99.0.1:80", "found")
	web(t, "10.99.0.1:8081", "static")
	web(t, "10.99.0.1:8088", "found at 8088")
	web(t, "10.99.0.1:8089", "found at 8089")
	web(t, "10.88.0.1:80", "original")
	secure := &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	for addr, text := range map[string]string{
		"10.99.0.1:443": "found tls", "10.99.0.1:9443": "found at 9443", "10.88.0.1:443": "original tls",
	} {
		serve(t, addr, func(c net.Conn) {
			s := tls.Server(c, secure)
			fmt.Fprintln(s, text)
			_ = s.CloseWrite()
		})
	}
	for _, registryOnly := range []bool{false, true} {
		o := testOptions()
		o.IPv6, o.AutoAllocate, o.RegistryOnly = false, false, registryOnly
		o.DNSResolver = serveNames(t, "10.99.0.1")
		r, report := load(t, dynamicConfig, o)
		for _, d := range report.Documents {
			if d.Status != "ok" {
				t.Fatalf("%+v", d)
			}
		}
		stop := startEnvoy(t, envoy, bootstrapFile(t, build(t, r, o)))
		checkDynamic(t, registryOnly)
		stop()
	}
}

// serveNames answers every name but those that begin with "no" with addr, and returns how Envoy is to ask.
func serveNames(t *testing.T, addr string) *corev3.TypedExtensionConfig {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		answer := new(dns.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case name[:2] == "no":
			answer.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			answer.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: net.ParseIP(addr),
			}}
		}
		_ = w.WriteMsg(answer) // who does not get it asks again
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { conn.Close() })
	at := conn.LocalAddr().(*net.UDPAddr)
	config, err := toAny(&caresv3.CaresDnsResolverConfig{Resolvers: []*corev3.Address{{Address: &corev3.Address_SocketAddress{
		SocketAddress: &corev3.SocketAddress{
			Protocol: corev3.SocketAddress_UDP, Address: at.IP.String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(at.Port)},
		},
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	return &corev3.TypedExtensionConfig{Name: "envoy.network.dns_resolver.cares", TypedConfig: config}
}

func checkDynamic(t *testing.T, registryOnly bool) {
	t.Helper()
	unknownHTTP, unknownTLS := "original GET /p", "original tls"
	if registryOnly {
		unknownHTTP, unknownTLS = "502 Bad Gateway", ""
	}
	began := time.Now()
	for _, c := range []struct{ name, got, want string }{
		{"Host", talk(t, "10.88.0.1:80", get("a.dyn.x")), "found GET /p host=a.dyn.x"},
		{"Host again", talk(t, "10.88.0.1:80", get("a.dyn.x")), "found GET /p host=a.dyn.x"},
		{"Host of several labels, with its port", talk(t, "10.88.0.1:80", get("a.b.c.dyn.x:80")), "found GET /p host=a.b.c.dyn.x:80"},
		{"Host of another port's service", talk(t, "10.88.0.1:8088", get("a.dyn.x:8088")), "found at 8088 GET /p host=a.dyn.x:8088"},
		{"Host without the port", talk(t, "10.88.0.1:8088", get("b.dyn.x")), "found at 8088 GET /p host=b.dyn.x"},
		{"Host with a port that nobody declares", talk(t, "10.88.0.1:80", get("a.dyn.x:8081")), unknownHTTP},
		{"a more specific host", talk(t, "10.88.0.1:80", get("static.dyn.x")), "static GET /p host=static.dyn.x"},
		{"an unknown Host", talk(t, "10.88.0.1:80", get("other.x")), unknownHTTP},
		{"Host that does not exist", talk(t, "10.88.0.1:80", get("no.dyn.x")), "503 Service Unavailable"},
		{"HTTP/2", talkHTTP2(t, "10.88.0.1:8089", "c.dyn.x:8089"), "found at 8089 GET /h2 host=c.dyn.x:8089"},
		{"SNI", talkTLS(t, "10.88.0.1:443", "a.dyn.x"), "found tls"},
		{"SNI of another port's service", talkTLS(t, "10.88.0.1:9443", "a.b.dyn.x"), "found at 9443"},
		{"an unknown SNI", talkTLS(t, "10.88.0.1:443", "other.x"), unknownTLS},
		{"SNI that does not exist", talkTLS(t, "10.88.0.1:443", "no.dyn.x"), ""},
		{"address of its own, Host", talk(t, "10.88.0.9:80", get("a.own.x")), "found GET /p host=a.own.x"},
		{"address of its own, SNI", talkTLS(t, "10.88.0.9:443", "a.own.x"), "found tls"},
	} {
		checkAnswer(t, c.name, c.got, c.want)
	}
	if took := time.Since(began); took > patience {
		t.Errorf("took %v", took)
	}
}
