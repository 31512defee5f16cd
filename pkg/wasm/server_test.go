package wasm

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve is a server of files for one test.
func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func TestServers(t *testing.T) {
	module := sample(1)
	answers := map[string][]byte{"/m.wasm": module, "/m.gz": zipped(module), "/m.tar.gz": zipped(tarred(item{name: "plugin.wasm", data: module})), "/page": []byte("<html>")}
	asked, saved := map[string]int{}, 0
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked[r.URL.Path]++
		switch data, ok := answers[r.URL.Path]; {
		case r.URL.Path == "/limited":
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(503)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/m.wasm", http.StatusFound)
		case !ok:
			w.WriteHeader(404)
		case r.Header.Get("If-None-Match") == `"`+sum(data)+`"`:
			saved++
			w.WriteHeader(304)
		default:
			w.Header().Set("ETag", `"`+sum(data)+`"`)
			_, _ = w.Write(data)
		}
	})
	s := newStore(t, nil)
	for _, path := range []string{"/m.wasm", "/m.gz", "/m.tar.gz", "/moved", "/m.wasm?token=a"} {
		m, err := resolve(t, s, Source{URL: server.URL + path, SHA256: sum(module)})
		if err != nil || m.SHA256 != sum(module) || m.Digest != "" {
			t.Errorf("%s: %+v, %v", path, m, err)
		}
	}
	before := asked["/m.wasm"]
	for range 2 {
		if _, err := resolve(t, s, Source{URL: server.URL + "/m.wasm"}); err != nil || asked["/m.wasm"] != before {
			t.Errorf("what is present is asked for again: %v", err)
		}
	}
	if _, err := resolve(t, s, Source{URL: server.URL + "/m.wasm", Policy: Always}); err != nil || asked["/m.wasm"] != before+1 || saved != 1 {
		t.Errorf("always: %v, %d not modified", err, saved)
	}
	answers["/m.wasm"] = sample(2)
	if m, err := resolve(t, s, Source{URL: server.URL + "/m.wasm", Policy: Always}); err != nil || m.SHA256 != sum(sample(2)) {
		t.Errorf("always, and it has changed: %+v, %v", m, err)
	}
	for path, want := range map[string]string{"/none": "answers 404 Not Found", "/page": `begins with "<html>"`, "/limited": "503"} {
		if _, err := resolve(t, s, Source{URL: server.URL + path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := resolve(t, s, Source{URL: server.URL + "/m.gz", SHA256: strings.Repeat("ab", 32)}); err == nil || !strings.Contains(err.Error(), "is wanted, and the module has "+sum(module)) {
		t.Errorf("another hash: %v", err)
	}
}

// TestServersThatStall: a server that takes too long over any part of a pull is given up, with the reason, and leaves nothing behind.
func TestServersThatStall(t *testing.T) {
	module := sample(1)
	ended := make(chan struct{})
	defer close(ended)
	drips := func(every time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(module)))
			for i := range module {
				_, _ = w.Write(module[i : i+1])
				w.(http.Flusher).Flush()
				select {
				case <-time.After(every):
				case <-ended:
					return
				}
			}
		}
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody says anything
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	const short = 50 * time.Millisecond
	for _, tc := range []struct {
		url   string
		short func(*timeouts)
		want  string
	}{
		{"https://" + mute.Addr().String(), func(p *timeouts) { p.connect = short }, "TLS handshake timeout"},
		{"http://" + mute.Addr().String(), func(p *timeouts) { p.header = short }, "timeout awaiting response headers"},
		{serve(t, drips(time.Hour)).URL, func(p *timeouts) { p.silence = short }, "no byte came for 50ms"},
		{serve(t, drips(time.Millisecond)).URL, func(p *timeouts) { p.pull = short }, "it was not done after 50ms"},
	} {
		s := newStore(t, nil)
		tc.short(&s.timeouts)
		if _, err := resolve(t, s, Source{URL: tc.url + "/m"}); err == nil || !strings.Contains(err.Error(), tc.want) || refused(err) {
			t.Errorf("%v; want %q", err, tc.want)
		}
		if left := files(t, s); len(left) > 0 {
			t.Errorf("%s: the store has %q", tc.want, left)
		}
	}
}

func TestNoServer(t *testing.T) {
	server := serve(t, nil)
	url := server.URL
	server.Close()
	if _, err := resolve(t, newStore(t, nil), Source{URL: url + "/m"}); err == nil || !strings.Contains(err.Error(), "connection refused") || refused(err) {
		t.Errorf("%v", err)
	}
}

// certificate writes a server's into a file.
func certificate(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTLS(t *testing.T) {
	r := newRegistry(t, true)
	r.push("v1", typeImage, layer{typeWasm, sample(1)})
	src := Source{URL: r.host() + "/a:v1"}
	if _, err := resolve(t, newStore(t, nil), src); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") {
		t.Errorf("an unknown authority: %v", err)
	}
	for why, change := range map[string]func(*Config){
		"its authority":      func(c *Config) { c.CAFile = certificate(t, r.Server) },
		"an insecure host":   func(c *Config) { c.Insecure = []string{"127.0.0.1"} },
		"an insecure server": func(c *Config) { c.Insecure = []string{"a", r.host()} },
		"all insecure":       func(c *Config) { c.Insecure = []string{"*"} },
	} {
		if _, err := resolve(t, newStore(t, change), src); err != nil {
			t.Errorf("%s: %v", why, err)
		}
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := resolve(t, newStore(t, func(c *Config) { c.CAFile = none }), src); err == nil || !strings.Contains(err.Error(), "UNDERSTUDY_WASM_CA_FILE") {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(none, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(t, newStore(t, func(c *Config) { c.CAFile = none }), src); err == nil || !strings.Contains(err.Error(), "want certificates in PEM") {
		t.Errorf("no certificates: %v", err)
	}
	if err := os.WriteFile(none, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: new(x509.Certificate).Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(t, newStore(t, func(c *Config) { c.CAFile = none }), src); err == nil {
		t.Error("an empty certificate: no error")
	}
}

// TestPlainHTTP: no credential goes unencrypted to anybody but this machine and those that are listed.
func TestPlainHTTP(t *testing.T) {
	s := newStore(t, func(c *Config) { c.Insecure = []string{"registry.lan:5000"} })
	for host, want := range map[string]bool{
		"127.0.0.1:5000": true, "[::1]:5000": true, "localhost": true, "a.localhost": true, "registry.lan:5000": true,
		"registry.lan": false, "registry.lan:80": false, "10.0.0.1": false, "localhost.example": false, "example.com": false,
	} {
		if got := s.plainAllowed(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	trip, err := s.newTrip(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.SetBasicAuth("a", "b") },
		func(r *http.Request) { r.Body = http.NoBody },
	} {
		req, err := http.NewRequest(http.MethodGet, "http://192.0.2.1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		change(req)
		if _, err := trip.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "no credentials go to 192.0.2.1 over plain HTTP") {
			t.Errorf("%v", err)
		}
	}
}

// TestRedirects: a secret stays with the host that it is for, and nobody is led from TLS to plain HTTP.
func TestRedirects(t *testing.T) {
	r := newRegistry(t, false)
	r.user = "user:word"
	module := sample(1)
	r.push("v1", typeImage, layer{typeWasm, module})
	seen := ""
	other := serve(t, func(w http.ResponseWriter, req *http.Request) {
		seen += "asked " + req.Header.Get("Authorization")
		_, _ = w.Write(module)
	})
	r.fault = func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			http.Redirect(w, req, other.URL+"/blob?X-Signature=x", http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	secret := fmt.Appendf(nil, `{"auths":{"%s":{"username":"user","password":"word"}}}`, r.host())
	if m, err := resolve(t, newStore(t, nil), Source{URL: r.host() + "/a:v1", DockerConfig: secret}); err != nil || m.SHA256 != sum(module) || seen != "asked " {
		t.Errorf("%+v, %v, the other host: %q", m, err, seen)
	}
	downgrading := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "http://192.0.2.1/m", http.StatusFound)
	}))
	defer downgrading.Close()
	s := newStore(t, func(c *Config) { c.CAFile = certificate(t, downgrading) })
	if _, err := resolve(t, s, Source{URL: downgrading.URL + "/m"}); err == nil || !strings.Contains(err.Error(), "redirects to plain HTTP at 192.0.2.1") {
		t.Errorf("%v", err)
	}
}

func TestAddressesThatAreNeverDialed(t *testing.T) {
	s := newStore(t, func(c *Config) {
		c.Blocked = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8")}
	})
	for address, blocked := range map[string]bool{
		"169.254.169.254:80": true, "[fe80::1%eth0]:80": true, "[::ffff:169.254.169.254]:80": true, "[64:ff9b::a9fe:a9fe]:80": true,
		"100.100.100.200:80": true, "[fd00:ec2::254]:80": true, "168.63.129.16:80": true, "10.1.2.3:443": true, "127.0.0.1:1": true,
		"192.168.1.1:443": false, "[::1]:1": false, "[64:ff9b::808:808]:443": false, "100.100.100.201:80": false,
	} {
		err := s.refuseAddress("tcp", address, nil)
		if (err != nil) != blocked || blocked && !refused(err) {
			t.Errorf("%s: %v", address, err)
		}
	}
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(sample(1)) })
	if _, err := resolve(t, s, Source{URL: server.URL}); err == nil || !strings.Contains(err.Error(), "127.0.0.1 is in 127.0.0.0/8, which is never asked") {
		t.Errorf("%v", err)
	}
	if _, err := resolve(t, newStore(t, nil), Source{URL: "http://169.254.169.254/latest"}); err == nil || !strings.Contains(err.Error(), "never asked") {
		t.Errorf("%v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	s := newStore(t, nil)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return now }
	for text, want := range map[string]time.Duration{
		"": 0, "-1": 0, "x": 0, "120": 2 * time.Minute, "999999999": time.Hour,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		var trip trip
		trip.store = s
		trip.noteRetry(text)
		if got := time.Duration(trip.retryAfter.Load()); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "77")
		w.WriteHeader(429)
	})
	s = newStore(t, nil)
	src := Source{URL: server.URL}
	p, err := s.place(src)
	if err != nil {
		t.Fatal(err)
	}
	if _, wait, err := s.attempt(t.Context(), p, src, s.track(p, src)); err == nil || wait != 77*time.Second {
		t.Errorf("%v, %v", wait, err)
	}
}
