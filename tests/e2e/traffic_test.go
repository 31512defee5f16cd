package e2e_test

import (
	"crypto/tls"
	"net"
	"testing"

	"understudy.mesh/tests/lab"
)

// TestTraffic runs every kind of traffic through one pod that nobody changes.
func TestTraffic(t *testing.T) {
	t.Parallel()
	ca := lab.NewCA(t)
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": trafficConfig()}})
	serveOutside(t, p, ca)
	serveApp(t, p, ca)
	for name, test := range map[string]func(*testing.T, *pod, *lab.CA){
		"names": testNames, "inbound HTTP": testInboundHTTP, "inbound TCP": testInboundTCP,
		"outbound HTTP": testOutboundHTTP, "outbound TLS": testOutboundTLS, "outbound TCP": testOutboundTCP,
		"outbound by name": testOutboundByName,
		"passthrough":      testPassthrough, "own ports": testOwnPorts, "access": testAccess,
		"commands": testCommands, "pages": testPages,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, p, ca)
		})
	}
}

// trafficConfig is the mesh of TestTraffic.
func trafficConfig() string {
	return documents(aliyun, aliyunHTTP,
		entry("http", "http.example", 80, "HTTP", "DNS"),
		entry("http-odd-port", "http.example", 8888, "HTTP", "DNS"),
		entry("one", "one.example", 3306, "TCP", "DNS"),
		entry("two", "two.example", 3306, "TCP", "DNS"),
		entry("six", "six.example", 3306, "TCP", "DNS"),
		static("static", "static.example", 81, "HTTP", "198.51.100.12", 8012),
		static("h2", "h2.example", 82, "HTTP2", "198.51.100.12", 8012),
		static("grpc", "h2.example", 83, "GRPC", "198.51.100.12", 8012),
		static("raw", "raw.example", 80, "HTTP", "198.51.100.11", 8081),
		static("count", "count.example", 5000, "TCP", "198.51.100.40", 9002),
		static("static-tcp", "echo.example", 7, "TCP", "198.51.100.13", 7007),
		entry("wild", "*.wild.example", 443, "TLS", "NONE"),
		entry("dynamic-http", "*.dyn.example", 8787, "HTTP", "DYNAMIC_DNS"),
		entry("dynamic-tls", "*.dyn.example", 8786, "TLS", "DYNAMIC_DNS"),
		entry("listed", "listed.example", 9100, "TCP", "NONE")+"  addresses: [198.51.100.50]\n",
	)
}

// serveOutside starts what the mesh of TestTraffic is about, and a server that it does not know.
func serveOutside(t *testing.T, p *pod, ca *lab.CA) {
	t.Helper()
	for addr, name := range map[string]string{
		"198.51.100.10:80": "aliyun", "[2001:db8::10]:80": "aliyun6",
		"198.51.100.11:80": "http", "[2001:db8::11]:80": "http6", "198.51.100.11:8888": "odd", "[2001:db8::11]:8888": "odd6",
		"198.51.100.12:8012": "static",
		"198.51.100.40:80":   "plain", "[2001:db8::40]:80": "plain6",
	} {
		lab.ServeHTTP(t, p.Out.Listen(t, addr), name)
	}
	for _, addr := range []string{"198.51.100.10:443", "[2001:db8::10]:443"} {
		lab.ServeHTTP(t, tls.NewListener(p.Out.Listen(t, addr), ca.Server(t, "aliyun.com")), "aliyun-tls")
	}
	lab.ServeHTTP(t, tls.NewListener(p.Out.Listen(t, "198.51.100.41:443"), ca.Server(t, "a.b.wild.example")), "wild")
	p.dns.Set("a.dyn.example", "198.51.100.12")
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.12:8787"), "dynamic")
	lab.ServeHTTP(t, tls.NewListener(p.Out.Listen(t, "198.51.100.12:8786"), ca.Server(t, "a.dyn.example")), "dynamic-tls")
	for addr, serve := range map[string]func(net.Conn){
		"198.51.100.21:3306":  lab.Banner("I am one"),
		"198.51.100.22:3306":  lab.Banner("I am two"),
		"[2001:db8::30]:3306": lab.Banner("I am six"),
		"198.51.100.13:7007":  lab.Echo,
		"198.51.100.40:9000":  lab.Echo,
		"198.51.100.40:9002":  lab.CountThenReply,
		"198.51.100.40:25":    lab.Banner("220 plain ESMTP"),
		"198.51.100.40:8081":  lab.RawHTTP,
		"198.51.100.11:8081":  lab.RawHTTP,
		"198.51.100.50:9100":  lab.Peer,
	} {
		lab.ServeTCP(p.Out.Listen(t, addr), serve)
	}
}

// serveApp starts the application's servers in the pod.
func serveApp(t *testing.T, p *pod, ca *lab.CA) {
	t.Helper()
	lab.ServeHTTP(t, p.Pod.Listen(t, "[::]:8080"), "app")
	lab.ServeHTTP(t, tls.NewListener(p.Pod.Listen(t, "[::]:8443"), ca.Server(t, "app.example")), "app-tls")
	for addr, serve := range map[string]func(net.Conn){
		"[::]:8081": lab.RawHTTP,
		"[::]:2525": lab.Banner("220 app ESMTP"),
		"[::]:9000": lab.Echo,
		"[::]:9001": lab.Peer,
		"[::]:9002": lab.CountThenReply,
	} {
		lab.ServeTCP(p.Pod.Listen(t, addr), serve)
	}
}
