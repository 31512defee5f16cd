package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// outcome runs the program and returns its exit status and output.
func outcome(t *testing.T, bin string, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(bin, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// testElsewhere: a command that this slot cannot do fails, and says where to run it.
func testElsewhere(t *testing.T, bin string) {
	env := []string{"POD_NAME=app-0", "POD_NAMESPACE=shop"}
	for _, args := range []string{"upgrade-status -o json", "dns table", "istio-iptables -p 15001", "request PUT /x", "status"} {
		status, out, errs := outcome(t, bin, env, strings.Fields(args)...)
		name, _, _ := strings.Cut(args, " ")
		for _, want := range []string{"pilot-agent: " + name + ": this slot has the empty image", "other slot", "kubectl exec app-0 -n shop -c ", "pilot-agent " + args} {
			if !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
				t.Errorf("%q says %q, want one line with %q", args, errs, want)
			}
		}
		if status != exitError || out != "" {
			t.Errorf("%q: exit status %d, output %q", args, status, out)
		}
	}
	for _, args := range []string{"request", "request GET", "request GET clusters --debug-port 65536", "request GET clusters --debug-port", "request GET a\r\nb"} {
		if status, out, errs := outcome(t, bin, nil, strings.Split(args, " ")...); status != exitUsage || out != "" || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit status %d, output %q, %q; want %d and one line", args, status, out, errs, exitUsage)
		}
	}
}

// inNamespace says that the test has a network namespace of its own, with the ports of a pod.
const inNamespace = "UNDERSTUDY_TEST_NAMESPACE"

// TestRequest runs itself again in a network namespace.
func TestRequest(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		bin := build(t)
		testNobodyServes(t, bin)
		testRequest(t, bin)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root for a network namespace")
		}
		t.Skip("needs root for a network namespace")
	}
	cmd := exec.Command("/bin/sh", "-c", `ip link set lo up && exec "$@"`, "sh", os.Args[0], "-test.run=^TestRequest$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// testRequest asks a generation that serves on loopback.
func testRequest(t *testing.T, bin string) {
	serve(t, "127.0.0.1:15000", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.Method, r.URL)
		if r.URL.Path == "/long" {
			w.Write(make([]byte, 3<<20)) // in chunks
		}
	})
	serve(t, "127.0.0.1:15099", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "a status port of its own") })
	serve(t, "[::1]:15021", func(w http.ResponseWriter, r *http.Request) { // a pod of IPv6 alone, with ASM's status port
		switch r.URL.Path {
		case "/missing":
			http.NotFound(w, r)
		case "/broken":
			http.Error(w, "it is broken", http.StatusServiceUnavailable)
		case "/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "part")
		default:
			fmt.Fprintf(w, "status of %s", r.URL.Path)
		}
	})
	for _, tc := range []struct {
		args   string
		status int
		out    string // it begins so
		size   int    // 0: just that
		errs   string // a part
	}{
		{args: "request GET clusters?format=json", out: "GET /clusters?format=json"},
		{args: "--log_output_level info request --debug-port=15004 GET /clusters", out: "GET /clusters"},
		{args: "request GET long", out: "GET /long", size: 3<<20 + len("GET /long")},
		{args: "request GET healthz/ready --debug-port 15020", out: "status of /healthz/ready"},
		{args: "request --debug-port=15099 GET x", out: "a status port of its own"},
		{args: "request GET missing --debug-port 15021", out: "404 page not found\n"},
		{args: "request GET broken --debug-port 15021", status: exitError, out: "it is broken\n", errs: "HTTP status code 503"},
		{args: "request GET cut --debug-port 15021", status: exitError, out: "part", errs: "ends early"},
	} {
		status, out, errs := outcome(t, bin, nil, strings.Fields(tc.args)...)
		if size := max(tc.size, len(tc.out)); status != tc.status || !strings.HasPrefix(out, tc.out) || len(out) != size || !strings.Contains(errs, tc.errs) || tc.errs == "" && errs != "" {
			t.Errorf("%q: exit status %d, %d bytes that begin with %.50q, %q; want %d, %d, %.50q, %q", tc.args, status, len(out), out, errs, tc.status, size, tc.out, tc.errs)
		}
	}
}

func testNobodyServes(t *testing.T, bin string) {
	status, out, errs := outcome(t, bin, []string{"POD_NAME=app-0"}, "request", "GET", "clusters")
	if status != exitError || out != "" || !strings.Contains(errs, "no generation serves at loopback port 15000: connection refused") || !strings.Contains(errs, "kubectl exec app-0 -c ") {
		t.Errorf("exit status %d, %q, %q", status, out, errs)
	}
}

// serve answers at an address.
func serve(t *testing.T, address string, handler http.HandlerFunc) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func TestCopyAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		answer, body, err string
	}{
		"a length":          {"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nabc", "ab", ""},
		"until the end":     {"HTTP/1.0 200 OK\r\n\r\nabc", "abc", ""},
		"chunks":            {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "abc", ""},
		"a chunk too short": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na", "a", "ends early"},
		"no last chunk":     {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "a", "ends early"},
		"no size":           {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "", "size of a chunk"},
		"a negative length": {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "", "Content-Length"},
		"no head":           {"HTTP/1.1 200 OK\r\n", "", "ends early"},
		"a long head":       {"HTTP/1.1 200 OK\r\nx: " + strings.Repeat("x", headerBuffer), "", "buffer full"},
		"no HTTP":           {"SSH-2.0\r\n", "", "no answer in HTTP"},
		"nothing":           {"", "", "ends early"},
	} {
		var body strings.Builder
		status, err := copyAnswer(&body, strings.NewReader(tc.answer))
		if body.String() != tc.body || (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) || err == nil && status != 200 {
			t.Errorf("%s: %d, %q, %v; want %q, %q", name, status, body.String(), err, tc.body, tc.err)
		}
	}
}

func TestOtherSlots(t *testing.T) {
	mounts := "640 630 0:51 / / rw,relatime - overlay overlay rw\n" +
		"655 640 8:1 /var/lib/kubelet/pods/0b1c/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw\n" +
		"656 640 8:1 /var/lib/kubelet/pods/0b1c/containers/NAME/5f0a /dev/termination-log rw - ext4 /dev/sda1 rw\n"
	for own, want := range map[string]string{
		"istio-proxy": "istio-proxy-2", "istio-proxy-1": "istio-proxy-2", "istio-proxy-2": "istio-proxy-1 istio-proxy",
	} {
		if got := strings.Join(otherSlots(containerName(strings.ReplaceAll(mounts, "NAME", own))), " "); got != want {
			t.Errorf("in %s: %s, want %s", own, got, want)
		}
	}
	if got := containerName("1 2 8:1 /containers/x/y /z rw - ext4 a rw\nshort\n"); got != "" {
		t.Errorf("a name out of nowhere: %s", got)
	}
}
