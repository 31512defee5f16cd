package status

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestProxyProtocol asks the readiness port through a load balancer that says who its client is, and without one.
func TestProxyProtocol(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, r.Method+" "+r.URL.Path+" "+string(body)+" from "+host)
	})}
	go server.Serve(proxyListener{l})
	t.Cleanup(func() { server.Close() })

	const binaryHeader = proxySignature + "\x21\x11\x00\x0c\x09\x09\x09\x09\x0a\x00\x00\x01\x04\x00\x00\x50"
	for name, tc := range map[string]struct{ header, request, want string }{
		"no header":        {"", "GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a  from 127.0.0.1"},
		"no header, P":     {"", "PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nz", "PUT /a z from 127.0.0.1"},
		"a line":           {"PROXY TCP4 9.9.9.9 10.0.0.1 1024 80\r\n", "GET /b HTTP/1.1\r\nHost: x\r\n\r\n", "GET /b  from 127.0.0.1"},
		"an unknown one":   {"PROXY UNKNOWN\r\n", "GET /b HTTP/1.1\r\nHost: x\r\n\r\n", "GET /b  from 127.0.0.1"},
		"in binary":        {binaryHeader, "GET /c HTTP/1.1\r\nHost: x\r\n\r\n", "GET /c  from 127.0.0.1"},
		"a health check":   {proxySignature + "\x20\x00\x00\x00", "GET /d HTTP/1.1\r\nHost: x\r\n\r\n", "GET /d  from 127.0.0.1"},
		"a line too long":  {"PROXY " + strings.Repeat("x", maxProxyLine) + "\r\n", "GET /b HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		"neither of both":  {"\r\nGET", " /b HTTP/1.1\r\nHost: x\r\n\r\n", ""},
		"one inside other": {"PROXY UNKNOWN\r\nPROXY UNKNOWN\r\n", "GET /b HTTP/1.1\r\nHost: x\r\n\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := exchange(t, l.Addr().String(), tc.header, tc.request); got != tc.want {
				t.Errorf("answer %q, want %q", got, tc.want)
			}
		})
	}
}

// exchange sends both as one, a byte at a time where a header could be cut, and gives the body of a good answer.
func exchange(t *testing.T, address, header, request string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range len(header) {
		if _, err := conn.Write([]byte{header[i]}); err != nil {
			return ""
		}
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return ""
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
