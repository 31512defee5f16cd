package status

import (
	"bufio"
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Whatever the JSON, parsing ends with an error or with probes that can be
// sent: one kind each, a port, a URL that stays with the application.
func FuzzParseProbers(f *testing.F) {
	f.Add([]byte(`{"/app-health/app/readyz":{"httpGet":{"path":"/x?y","port":80,"scheme":"HTTPS","httpHeaders":[{"name":"Host","value":"a"}]}}}`))
	f.Add([]byte(`{"/app-lifecycle/app/prestopz":{"tcpSocket":{"port":"80"},"timeoutSeconds":3}}`))
	f.Add([]byte(`{"/app-health/a/livez":{"grpc":{"port":1,"service":"s"}},"/app-health/b/livez":null}`))
	f.Add([]byte(`{"/app-health/a/livez":{"httpGet":{"path":"http://evil/","port":1}}}`))
	f.Add([]byte(`{"/app-health/a/livez":{"httpGet":{"path":"//evil/","port":1}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		probers, err := parseProbers(data)
		if err != nil {
			return
		}
		a := &appProbes{dest: newDestination(nil, false)}
		for path, p := range probers {
			if !proberPath.MatchString(path) || p.timeout() < 0 {
				t.Fatalf("%q: %+v", path, p)
			}
			if p.HTTPGet == nil {
				continue
			}
			req := a.request(t.Context(), httptest.NewRequest(http.MethodGet, probePath, nil), p.HTTPGet)
			// What goes on the wire is the authority of the URL, reparsed.
			sent, err := url.Parse(req.URL.String())
			if err != nil || sent.Hostname() != "127.0.0.1" || sent.Port() != portString(uint16(p.HTTPGet.Port)) {
				t.Fatalf("%q becomes %q (%v)", p.HTTPGet.Path, req.URL, err)
			}
		}
	})
}

func FuzzProberPath(f *testing.F) {
	for _, seed := range []string{probePath, "/app-health//livez", "/app-health/a/b/livez", "/app-lifecycle/a/poststartz\n", "/app-health/a/livez/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		parts := strings.Split(path, "/")
		want := len(parts) == 4 && parts[0] == "" && parts[2] != "" &&
			(parts[1] == "app-health" || parts[1] == "app-lifecycle") &&
			strings.Contains(" livez readyz startupz prestopz poststartz ", " "+parts[3]+" ") && !strings.Contains(parts[3], " ")
		if got := proberPath.MatchString(path); got != want {
			t.Fatalf("%q: %v, want %v", path, got, want)
		}
	})
}

// A target is always a URL of localhost on a port that is nobody's of ours.
func FuzzParseScrapeTargets(f *testing.F) {
	f.Add([]byte(`{"scrape":"true","path":"/metrics","port":"9090"}`))
	f.Add([]byte(`{"scrape":true,"targets":[{"port":1,"path":"//evil"},{"port":"015020"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		targets, err := parseScrapeTargets(data, []uint16{4242})
		if err != nil {
			return
		}
		for _, target := range targets {
			u, err := url.Parse(target.String())
			if err != nil || u.Hostname() != "localhost" {
				t.Fatalf("%q becomes %q (%v)", data, target, err)
			}
			if p, err := parsePort(u.Port()); err != nil || p == 4242 || p == 15020 {
				t.Fatalf("%q becomes %q (%v)", data, target, err)
			}
		}
	})
}

// What is copied is whole lines, none of them blank, too long or an end mark,
// in their order.
func FuzzCopyLines(f *testing.F) {
	f.Add([]byte("a 1\n\n# EOF\nb 2"))
	f.Add(bytes.Repeat([]byte("x"), maxLine+1))
	f.Add([]byte("\r\n\r\r\n# EOF\r"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var got bytes.Buffer
		out := bufio.NewWriter(&got)
		err := copyLines(out, bytes.NewReader(data))
		out.Flush()
		var want bytes.Buffer
		for line := range bytes.SplitSeq(data, []byte("\n")) {
			if len(line) >= maxLine {
				if err == nil {
					t.Fatal("a line that was left out is no error")
				}
				continue
			}
			if line = bytes.TrimRight(line, "\r"); len(line) > 0 && string(line) != openMetricsEnd {
				want.Write(line)
				want.WriteByte('\n')
			}
		}
		if !bytes.Equal(got.Bytes(), want.Bytes()) {
			t.Fatalf("got %q, want %q", got.Bytes(), want.Bytes())
		}
	})
}
