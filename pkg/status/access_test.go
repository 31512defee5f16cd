package status

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

func TestLocal(t *testing.T) {
	tests := map[string]bool{
		"127.0.0.1:1":           true,
		"127.0.0.2:1":           true,
		"127.255.255.254:65535": true,
		"[::1]:1":               true,
		"[::ffff:127.0.0.1]:1":  true,
		"127.0.0.6:1":           false,
		"[::6]:1":               false,
		"[::ffff:127.0.0.6]:1":  false,
		"[::ffff:7f00:6]:1":     false,
		"10.0.0.1:1":            false,
		"[fe80::1%eth0]:1":      false,
		"[::1%lo]:1":            true,
		"[::]:1":                false,
		"0.0.0.0:1":             false,
		"[::127.0.0.1]:1":       false, // deprecated IPv4-compatible, no loopback
		"localhost:1":           false,
		"127.0.0.1":             false,
		"@":                     false,
		"":                      false,
	}
	for addr, want := range tests {
		if got := local(addr); got != want {
			t.Errorf("local(%q) = %v, want %v", addr, got, want)
		}
	}
}

func TestLocalHost(t *testing.T) {
	tests := map[string]bool{
		"": true, "localhost": true, "localhost:15000": true, "LOCALHOST": true, "a.localhost:1": true,
		"127.0.0.1:15000": true, "[::1]:15000": true, "[::1]": true, "10.1.2.3": true, "[::ffff:127.0.0.1]:1": true,
		"envoy:15000": true, "evil.example": false, "evil.example:15000": false, "127.0.0.1.evil.example": false,
		"localhost.evil.example:1": false, "evil.example.": false,
	}
	for host, want := range tests {
		if got := localHost(host); got != want {
			t.Errorf("localHost(%q) = %v, want %v", host, got, want)
		}
	}
}

// accessConfig records what was asked for.
func accessConfig(t *testing.T, asked *[]string) Config {
	c := testConfig(t)
	note := func(what string) func(context.Context) error {
		return func(context.Context) error { *asked = append(*asked, what); return nil }
	}
	c.Quit, c.Drain = note("quit"), note("drain")
	c.Upgrade = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "generations") })
	c.Index = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "overview") })
	c.Profiling = true
	c.Debug = map[string]http.Handler{
		"/debug/ndsz": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "names") }),
		"/debug/dns/": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }),
	}
	c.Admin = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, "envoy "+r.Method+" "+r.URL.Path)
	})
	return c
}

func TestAccess(t *testing.T) {
	const inside, outside, forwarded, forwarded6 = "127.0.0.1:999", "10.0.0.9:999", "127.0.0.6:999", "[::6]:999"
	var asked []string
	s := newServer(t, accessConfig(t, &asked))
	status, admin := s.statusHandler(s.guard()), s.adminHandler(s.guard())
	tests := []struct {
		name    string
		handler http.Handler
		method  string
		path    string
		remote  string
		header  [2]string
		code    int
		asked   string
	}{
		{"ready from anywhere", status, "GET", "/healthz/ready", outside, [2]string{}, 200, ""},
		{"ready HEAD", status, "HEAD", "/healthz/ready", forwarded, [2]string{}, 200, ""},
		{"ready POST", status, "POST", "/healthz/ready", inside, [2]string{}, 405, ""},
		{"metrics from anywhere", status, "GET", "/metrics", outside, [2]string{}, 200, ""},
		{"metrics POST", status, "POST", "/stats/prometheus", outside, [2]string{}, 405, ""},
		{"upgrade from anywhere", status, "GET", "/upgrade", outside, [2]string{}, 200, ""},
		{"upgrade through Envoy", status, "HEAD", "/upgrade", forwarded6, [2]string{}, 200, ""},
		{"upgrade is for reading", status, "POST", "/upgrade", inside, [2]string{}, 405, ""},
		{"upgrade on the kubelet's port", s.probeHandler(), "GET", "/upgrade", inside, [2]string{}, 404, ""},
		{"quit", status, "POST", "/quitquitquit", inside, [2]string{}, 200, "quit"},
		{"quit GET", status, "GET", "/quitquitquit", inside, [2]string{}, 405, ""},
		{"quit from outside", status, "POST", "/quitquitquit", outside, [2]string{}, 403, ""},
		{"quit from outside, wrong method", status, "GET", "/quitquitquit", outside, [2]string{}, 403, ""},
		{"quit through Envoy", status, "POST", "/quitquitquit", forwarded, [2]string{}, 403, ""},
		{"quit through Envoy, IPv6", status, "POST", "/quitquitquit", forwarded6, [2]string{}, 403, ""},
		{"quit, mapped", status, "POST", "/quitquitquit", "[::ffff:127.0.0.6]:1", [2]string{}, 403, ""},
		{"quit, X-Forwarded-For is no proof", status, "POST", "/quitquitquit", outside, [2]string{"X-Forwarded-For", "127.0.0.1"}, 403, ""},
		{"drain", status, "POST", "/drain", "[::1]:1", [2]string{}, 200, "drain"},
		{"drain PUT", status, "PUT", "/drain", inside, [2]string{}, 405, ""},
		{"drain from outside", status, "POST", "/drain", outside, [2]string{}, 403, ""},
		{"drain for another site", status, "POST", "/drain", inside, [2]string{"Sec-Fetch-Site", "cross-site"}, 403, ""},
		{"drain for another origin", status, "POST", "/drain", inside, [2]string{"Origin", "https://evil.example"}, 403, ""},
		{"drain by a re-bound name", status, "POST", "/drain", inside, [2]string{"Host", "evil.example:15020"}, 403, ""},
		{"debug", status, "GET", "/debug/ndsz", inside, [2]string{}, 200, ""},
		{"overview", status, "GET", "/debug/", inside, [2]string{}, 200, ""},
		{"overview is for reading", status, "POST", "/debug/", inside, [2]string{}, 405, ""},
		{"overview from outside", status, "GET", "/debug/", outside, [2]string{}, 403, ""},
		{"overview through Envoy", status, "GET", "/debug/", forwarded, [2]string{}, 403, ""},
		{"overview by a re-bound name", status, "GET", "/debug/", inside, [2]string{"Host", "evil.example:15020"}, 403, ""},
		{"debug from outside", status, "GET", "/debug/ndsz", outside, [2]string{}, 403, ""},
		{"debug through Envoy", status, "GET", "/debug/dns/lookup", forwarded, [2]string{}, 403, ""},
		{"debug below", status, "GET", "/debug/dns/lookup", inside, [2]string{}, 200, ""},
		{"debug unknown", status, "GET", "/debug/other", inside, [2]string{}, 404, ""},
		{"debug unknown from outside", status, "GET", "/debug/other", outside, [2]string{}, 403, ""},
		{"pprof", status, "GET", "/debug/pprof/", inside, [2]string{}, 200, ""},
		{"pprof from outside", status, "GET", "/debug/pprof/cmdline", outside, [2]string{}, 403, ""},
		{"unknown", status, "GET", "/config_dump", inside, [2]string{}, 404, ""},
		{"probe that is not there", status, "GET", "/app-health/app/readyz", outside, [2]string{}, 400, ""},

		{"admin", admin, "GET", "/config_dump", inside, [2]string{}, 200, "envoy GET /config_dump"},
		{"admin keeps odd paths", admin, "GET", "/a//b", inside, [2]string{}, 200, "envoy GET /a//b"},
		{"admin from outside", admin, "GET", "/config_dump", outside, [2]string{}, 403, ""},
		{"admin through Envoy", admin, "GET", "/config_dump", forwarded, [2]string{}, 403, ""},
		{"admin by a re-bound name", admin, "GET", "/config_dump", inside, [2]string{"Host", "evil.example"}, 403, ""},
		{"admin's own page", admin, "POST", "/reset_counters", inside, [2]string{"Origin", "http://localhost:15000"}, 200, "envoy POST /reset_counters"},
		{"admin quit is ours", admin, "POST", "/quitquitquit", inside, [2]string{}, 200, "quit"},
		{"admin quit GET goes nowhere", admin, "GET", "/quitquitquit", inside, [2]string{}, 405, ""},
		{"admin quit spelt otherwise", admin, "POST", "/x/..//quitquitquit/", inside, [2]string{}, 200, "quit"},
		{"admin quit escaped", admin, "POST", "/%71uitquitquit?x=1", inside, [2]string{}, 200, "quit"},
		{"admin quit from outside", admin, "POST", "/quitquitquit", outside, [2]string{}, 403, ""},

		{"control socket", s.Local(), "POST", "/drain", "@", [2]string{}, 200, "drain"},
		{"control socket, method", s.Local(), "GET", "/drain", "@", [2]string{}, 405, ""},
		{"control socket, debug", s.Local(), "GET", "/debug/ndsz", "@", [2]string{}, 200, ""},
		{"control socket, admin", s.LocalAdmin(), "GET", "/clusters", "@", [2]string{}, 200, "envoy GET /clusters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked = nil
			r := httptest.NewRequest(tt.method, tt.path, nil)
			r.RemoteAddr, r.Host = tt.remote, "localhost:15000"
			if tt.header[0] == "Host" {
				r.Host = tt.header[1]
			} else if tt.header[0] != "" {
				r.Header.Set(tt.header[0], tt.header[1])
			}
			w := httptest.NewRecorder()
			tt.handler.ServeHTTP(w, r)
			if w.Code != tt.code || strings.Join(asked, ",") != tt.asked {
				t.Errorf("%d and asked %q, want %d and %q; body %q", w.Code, asked, tt.code, tt.asked, w.Body)
			}
			if w.Code == http.StatusMethodNotAllowed && w.Header().Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

func TestMetricsLoopbackOnly(t *testing.T) {
	c := testConfig(t)
	c.MetricsLoopbackOnly = true
	s := newServer(t, c)
	for remote, want := range map[string]int{"127.0.0.1:1": 200, "127.0.0.6:1": 403, "10.0.0.1:1": 403} {
		for _, path := range []string{"/metrics", "/stats/prometheus"} {
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.RemoteAddr, r.Host = remote, "10.0.0.1:15020"
			w := httptest.NewRecorder()
			s.statusHandler(s.guard()).ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s from %s: %d, want %d", path, remote, w.Code, want)
			}
		}
	}
}

func TestAskFails(t *testing.T) {
	c := testConfig(t)
	c.Quit = func(context.Context) error { return errors.New("no Envoy to stop") }
	s := newServer(t, c)
	for path, want := range map[string]struct {
		code int
		body string
	}{"/quitquitquit": {500, "no Envoy to stop"}, "/drain": {503, "not available"}} {
		w := httptest.NewRecorder()
		s.Local().ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, nil))
		if w.Code != want.code || !strings.Contains(w.Body.String(), want.body) {
			t.Errorf("%s: %d %q", path, w.Code, w.Body)
		}
	}
}

// Real sockets: who is loopback is decided by what the kernel says, on a
// dual-stack socket too.
func TestAccessRealSockets(t *testing.T) {
	var asked []string
	c := accessConfig(t, &asked)
	dual, err := Listen(Socket{Use: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	admin := listen(t)
	runOn(t, c, Listeners{Status: dual, Admin: admin})
	_, statusPort, _ := net.SplitHostPort(dual[0].Addr().String())
	_, adminPort, _ := net.SplitHostPort(admin[0].Addr().String())
	targets := []string{"127.0.0.1:" + statusPort, "[::1]:" + statusPort, "127.0.0.1:" + adminPort, "[::1]:" + adminPort}
	for _, target := range targets {
		v6 := strings.HasPrefix(target, "[")
		sources := map[string]int{"127.0.0.1": 200, "127.0.0.6": 403, "127.0.0.9": 200}
		if v6 {
			sources = map[string]int{"::1": 200}
		}
		for source, want := range sources {
			if got := postFrom(t, source, "http://"+target+"/quitquitquit"); got != want {
				t.Errorf("POST %s from %s: %d, want %d", target, source, got, want)
			}
		}
	}
	if got := len(asked); got != 6 || slices.ContainsFunc(asked, func(a string) bool { return a != "quit" }) {
		t.Errorf("asked %v, want quit 6 times", asked)
	}
}

func postFrom(t *testing.T, source, url string) int {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	client := &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}, Timeout: testDeadline}
	resp, err := client.Post(url, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
