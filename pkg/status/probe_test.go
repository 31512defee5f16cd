package status

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	grpcstatus "google.golang.org/grpc/status"

	"understudy.mesh/internal/compliance"
)

const probePath = "/app-health/app/readyz"

// probe sends one request for the probe in JSON to a server whose pod has the
// given addresses.
func probe(t *testing.T, prober string, r *http.Request, podIPs ...string) *httptest.ResponseRecorder {
	t.Helper()
	c := testConfig(t)
	c.AppProbers = fmt.Appendf(nil, `{%q: %s}`, probePath, prober)
	c.HTTP2Probing = true
	for _, ip := range podIPs {
		c.PodIPs = append(c.PodIPs, netip.MustParseAddr(ip))
	}
	w := httptest.NewRecorder()
	newServer(t, c).Local().ServeHTTP(w, r)
	return w
}

func kubelet() *http.Request {
	r := httptest.NewRequest(http.MethodGet, probePath, nil)
	r.Host = "10.1.2.3:15020"
	r.Header.Set("User-Agent", "kube-probe/1.31")
	r.Header.Set("Accept", "*/*")
	r.Header.Set("Connection", "close")
	return r
}

func portOf(t *testing.T, addr net.Addr) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// What the application sees of an HTTP probe.
func TestHTTPProbeRequest(t *testing.T) {
	seen := make(chan *http.Request, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, `{"ok":true}`)
	}))
	defer srv.Close()
	port := portOf(t, srv.Listener.Addr())
	tests := []struct {
		name, headers string
		host          string
		want          map[string]string
	}{
		{"the kubelet's headers", `[]`, "10.1.2.3:" + port, map[string]string{"User-Agent": "kube-probe/1.31", "Accept": "*/*"}},
		{"the probe's win", `[{"name":"accept","value":"text/html"},{"name":"X-A","value":"1"},{"name":"X-A","value":"2"}]`,
			"10.1.2.3:" + port, map[string]string{"Accept": "text/html", "X-A": "1,2"}},
		{"its Host wins", `[{"name":"Host","value":"app.example"}]`, "app.example", nil},
		{"as does :authority", `[{"name":":authority","value":"app.example:1"}]`, "app.example:1", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := probe(t, `{"httpGet":{"path":"health?full=1","port":`+port+`,"httpHeaders":`+tt.headers+`}}`, kubelet())
			r := receive(t, seen)
			if w.Code != http.StatusAccepted || w.Body.String() != `{"ok":true}` || w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("answer %d %q %v", w.Code, w.Body, w.Header())
			}
			if r.Method != "GET" || r.URL.String() != "/health?full=1" || r.Host != tt.host {
				t.Errorf("%s %s of host %s, want host %s", r.Method, r.URL, r.Host, tt.host)
			}
			if host, _, _ := net.SplitHostPort(r.RemoteAddr); host != "127.0.0.6" {
				t.Errorf("source %s, want 127.0.0.6", host)
			}
			for name, value := range tt.want {
				if got := strings.Join(r.Header.Values(name), ","); got != value {
					t.Errorf("%s: %q, want %q", name, got, value)
				}
			}
		})
	}
}

func TestHTTPProbeAnswers(t *testing.T) {
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	defer srv.Close()
	port := portOf(t, srv.Listener.Addr())
	redirect := func(from, to string) { mux.Handle(from, http.RedirectHandler(to, http.StatusFound)) }
	mux.HandleFunc("/ok", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "fine") })
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "bad", http.StatusServiceUnavailable) })
	mux.HandleFunc("/none", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat("x", 3*maxProbeBody)) })
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/odd", func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n")
	})
	redirect("/moved", "/ok")
	redirect("/loop", "/loop")
	redirect("/away", "http://192.0.2.1/ok")
	tests := []struct {
		path string
		code int
		body string // its beginning
		size int    // 0: not checked
	}{
		{"/ok", 200, "fine", 4},
		{"/bad", 503, "bad", 0},
		{"/none", 204, "", 0},
		{"/big", 200, "xxx", maxProbeBody},
		{"/moved", 200, "fine", 4},
		{"/away", 200, "", 0},
		{"/loop", 500, "probe http://127.0.0.1", 0},
		{"/slow", 500, "probe http://127.0.0.1", 0},
		{"/odd", 500, "probe http://127.0.0.1", 0},
	}
	for _, tt := range tests {
		timeout := "20"
		if tt.path == "/slow" {
			timeout = "1"
		}
		w := probe(t, `{"httpGet":{"path":"`+tt.path+`","port":"`+port+`"},"timeoutSeconds":`+timeout+`}`, kubelet())
		if w.Code != tt.code || !strings.HasPrefix(w.Body.String(), tt.body) || (tt.size > 0 && w.Body.Len() != tt.size) {
			t.Errorf("%s: %d, %d bytes %.60q, want %d %q", tt.path, w.Code, w.Body.Len(), w.Body, tt.code, tt.body)
		}
	}
	w := probe(t, `{"httpGet":{"port":`+port+`}}`, httptest.NewRequest("GET", "/app-health/other/readyz", nil))
	if w.Code != 400 || !strings.Contains(w.Body.String(), "app prober config does not exists for /app-health/other/readyz") {
		t.Errorf("unknown probe: %d %q", w.Code, w.Body)
	}
}

// The certificate is not checked, and HTTP/2 is used where it is allowed.
func TestHTTPSProbe(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	for http2, want := range map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"} {
		c := testConfig(t)
		c.HTTP2Probing = http2
		c.AppProbers = []byte(`{"` + probePath + `":{"httpGet":{"scheme":"https","port":` + portOf(t, srv.Listener.Addr()) + `}}}`)
		w := httptest.NewRecorder()
		newServer(t, c).Local().ServeHTTP(w, kubelet())
		if w.Code != 200 || w.Body.String() != want {
			t.Errorf("HTTP/2 %v: %d %q, want %q", http2, w.Code, w.Body, want)
		}
	}
}

// TestHTTPSProbeComplies: to an application without what a policy demands there is no connection.
func TestHTTPSProbeComplies(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.TLS = &tls.Config{MaxVersion: tls.VersionTLS12}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	for policy, want := range map[compliance.Policy]int{"": 200, compliance.FIPS2: 200, compliance.PQC: 500} {
		c := testConfig(t)
		c.Compliance = policy
		c.AppProbers = []byte(`{"` + probePath + `":{"httpGet":{"scheme":"https","port":` + portOf(t, srv.Listener.Addr()) + `}}}`)
		w := httptest.NewRecorder()
		newServer(t, c).Local().ServeHTTP(w, kubelet())
		if w.Code != want {
			t.Errorf("%q: %d %q, want %d", policy, w.Code, w.Body, want)
		}
	}
}

func TestTCPProbe(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			t.Logf("%s: %v", ip, err) // a machine without IPv6
			continue
		}
		prober := `{"tcpSocket":{"port":` + portOf(t, l.Addr()) + `},"timeoutSeconds":5}`
		if w := probe(t, prober, kubelet(), ip); w.Code != 200 {
			t.Errorf("%s: %d %q", ip, w.Code, w.Body)
		}
		l.Close()
		if w := probe(t, prober, kubelet(), ip); w.Code != 500 || !strings.Contains(w.Body.String(), "refused") {
			t.Errorf("%s, nobody there: %d %q", ip, w.Code, w.Body)
		}
	}
}

func TestDestination(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		podIPs    []netip.Addr
		localhost bool
		want      string
		source    netip.Addr
	}{
		{nil, false, "127.0.0.1:80", forwardedSource4},
		{[]netip.Addr{addr("10.0.0.1"), addr("2001:db8::1")}, false, "10.0.0.1:80", forwardedSource4},
		{[]netip.Addr{addr("2001:db8::1"), addr("10.0.0.1")}, false, "[2001:db8::1]:80", forwardedSource6},
		{[]netip.Addr{addr("::ffff:10.0.0.1")}, false, "10.0.0.1:80", forwardedSource4},
		{[]netip.Addr{addr("10.0.0.1")}, true, "127.0.0.1:80", forwardedSource4},
		{[]netip.Addr{addr("2001:db8::1")}, true, "[::1]:80", forwardedSource6},
	}
	for _, tt := range tests {
		d := newDestination(tt.podIPs, tt.localhost)
		if d.hostPort(80) != tt.want || d.source != tt.source {
			t.Errorf("%v, localhost %v: %s from %s", tt.podIPs, tt.localhost, d.hostPort(80), d.source)
		}
	}
}

// healthServer notes who asked.
type healthServer struct {
	*health.Server
	asked chan string
}

func (h healthServer) Check(ctx context.Context, r *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p, _ := peer.FromContext(ctx)
	host, _, _ := net.SplitHostPort(p.Addr.String())
	h.asked <- host + " " + strings.Join(md.Get("user-agent"), ",")
	if r.GetService() == "slow" {
		<-ctx.Done()
		return nil, grpcstatus.FromContextError(ctx.Err()).Err()
	}
	if r.GetService() == "none" {
		return nil, grpcstatus.Error(codes.Unimplemented, "none")
	}
	return h.Server.Check(ctx, r)
}

func TestGRPCProbe(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	h := healthServer{health.NewServer(), make(chan string, 1)}
	healthpb.RegisterHealthServer(srv, h)
	h.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Stop()
		if err := receive(t, served); err != nil {
			t.Error(err)
		}
	}()
	port := portOf(t, l.Addr())
	tests := []struct {
		service string
		code    int
		body    string
	}{
		{"", 200, ""},
		{"down", 500, "NOT_SERVING"},
		{"unknown", 500, "NotFound"},
		{"none", 500, "Unimplemented"},
		{"slow", 500, "DeadlineExceeded"},
	}
	for _, tt := range tests {
		timeout := "20"
		if tt.service == "slow" {
			timeout = "1"
		}
		w := probe(t, `{"grpc":{"port":`+port+`,"service":"`+tt.service+`"},"timeoutSeconds":`+timeout+`}`, kubelet())
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.body) {
			t.Errorf("service %q: %d %q", tt.service, w.Code, w.Body)
		}
		if got := receive(t, h.asked); !strings.HasPrefix(got, "127.0.0.6 kube-probe/1.31") {
			t.Errorf("service %q was asked by %q", tt.service, got)
		}
	}
	if w := probe(t, `{"grpc":{"port":1},"timeoutSeconds":5}`, kubelet()); w.Code != 500 || !strings.Contains(w.Body.String(), "refused") {
		t.Errorf("nobody there: %d %q", w.Code, w.Body)
	}
}

func TestParseProbers(t *testing.T) {
	const ok = ""
	key := func(path, prober string) string { return fmt.Sprintf(`{%q: %s}`, path, prober) }
	tests := []struct{ in, want string }{
		{"", ok}, {" \n", ok}, {"{}", ok}, {"null", ok},
		{key("/app-health/a.b-c/livez", `{"tcpSocket":{"port":1,"host":"x"},"timeoutSeconds":3}`), ok},
		{key("/app-health/app/startupz", `{"grpc":{"port":65535,"service":null}}`), ok},
		{key("/app-lifecycle/app/prestopz", `{"httpGet":{"port":"8080","scheme":"HTTPS"},"later":{}}`), ok},
		{key("/app-lifecycle/app/poststartz", `{"httpGet":{"port":80,"path":"//x/%zz"}}`), ok},
		{"[]", "want a JSON object"},
		{key("/app-health/app/healthz", `{"tcpSocket":{"port":1}}`), `key "/app-health/app/healthz"`},
		{key("/app-health/a/b/livez", `{"tcpSocket":{"port":1}}`), "want a path like"},
		{key("x/app-health/app/livez", `{"tcpSocket":{"port":1}}`), "want a path like"},
		{key(probePath, `{}`), "there are 0"},
		{key(probePath, `null`), "there are 0"},
		{key(probePath, `{"tcpSocket":{"port":1},"grpc":{"port":1}}`), "there are 2"},
		{key(probePath, `{"httpGet":{"port":"http"}}`), `port "http"`},
		{key(probePath, `{"httpGet":{"port":0}}`), `port "0"`},
		{key(probePath, `{"httpGet":{}}`), "httpGet.port is missing"},
		{key(probePath, `{"tcpSocket":{}}`), "tcpSocket.port is missing"},
		{key(probePath, `{"grpc":{"port":65536}}`), `port "65536"`},
		{key(probePath, `{"httpGet":{"port":1,"scheme":"ftp"}}`), `scheme "ftp"`},
		{key(probePath, `{"tcpSocket":{"port":1},"timeoutSeconds":-1}`), "timeoutSeconds -1"},
		{key(probePath, `{"tcpSocket":{"port":1},"timeoutSeconds":"1"}`), "timeoutSeconds"},
	}
	for _, tt := range tests {
		_, err := parseProbers([]byte(tt.in))
		if (err == nil) != (tt.want == ok) || (err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), probersSource))) {
			t.Errorf("%s: error %v, want %q", tt.in, err, tt.want)
		}
	}
}
