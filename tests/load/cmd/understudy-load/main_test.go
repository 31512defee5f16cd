package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/freeport"
	"understudy.mesh/tests/load"
)

// asMain makes the test binary the command itself: signals and exit statuses are a process's.
const asMain = "UNDERSTUDY_LOAD_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const deadline = 30 * time.Second

func process(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), asMain+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(out)
}

// startServer starts `serve` and returns the addresses that it prints, and its process.
func startServer(t *testing.T) (server *exec.Cmd, http, echo string) {
	t.Helper()
	server, out := process(t, "serve", "-name", "app", "-http", "127.0.0.1:0", "-echo", "127.0.0.1:0")
	for _, address := range []struct {
		kind string
		to   *string
	}{{"http", &http}, {"echo", &echo}} {
		line, err := out.ReadString('\n')
		fields := strings.Fields(line)
		if err != nil || len(fields) != 3 || fields[0] != "listening" || fields[1] != address.kind {
			t.Fatalf("serve printed %q, %v", line, err)
		}
		*address.to = fields[2]
	}
	return server, http, echo
}

// TestProcess follows a load process until it has made requests of both flows, and ends both processes by signals.
func TestProcess(t *testing.T) {
	server, http, echo := startServer(t)
	config := filepath.Join(t.TempDir(), "load.json")
	err := os.WriteFile(config, []byte(`{"flows": [{"kind": "http1-new", "target": "http://`+http+`/", "rate": 100, "want": "server=app"}]}`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd, out := process(t, "-config", config, "-source", "outside", "-flow", "kind=tcp-stream rate=100 target="+echo)
	var last load.Report
	for r, err := range load.Follow(out) {
		if err != nil {
			t.Fatal(err)
		}
		if last = r; !r.Final && r.Flow("http1-new").Total.OK > 0 && r.Flow("tcp-stream").Total.OK > 0 {
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the load: %v", err)
	}
	if !last.Final || last.Failures() != 0 || last.Source != "outside" || last.CPU <= 0 {
		t.Errorf("the last report is %+v\n%v", last, last)
	}
	_ = server.Process.Signal(syscall.SIGINT)
	if err := server.Wait(); err != nil {
		t.Errorf("serve: %v", err)
	}
}

// TestServeHTTPS asks a server over TLS, and wants the certificate that it was given.
func TestServeHTTPS(t *testing.T) {
	theirs := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	defer theirs.Close()
	key, err := x509.MarshalPKCS8PrivateKey(theirs.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert := filepath.Join(dir, "cert.pem") + "," + filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: theirs.Certificate().Raw}, "key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server, out := process(t, "serve", "-name", "world", "-cert", cert, "-https", "127.0.0.1:0")
	line, err := out.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "listening https ") {
		t.Fatalf("serve printed %q, %v", line, err)
	}
	response, err := theirs.Client().Get("https://" + strings.Fields(line)[2] + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || string(body) != "server=world\n" {
		t.Errorf("%q, %v", body, err)
	}
	_ = server.Process.Signal(syscall.SIGINT)
	_ = server.Wait()
}

func TestExitStatus(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	free := fmt.Sprintf("127.0.0.1:%d", freeport.Get(t))
	for _, tt := range []struct {
		args []string
		want int
	}{
		{[]string{"-requests", "1", "-flow", "kind=http1-new target=http://" + free}, exitFailed},
		{[]string{"-flow", "kind=http1-new"}, exitUsage},
		{[]string{"-colour"}, exitUsage},
		{[]string{"run", "walk"}, exitUsage},
		{[]string{"serve"}, exitUsage},
		{[]string{"serve", "-https", "127.0.0.1:0"}, exitUsage}, // without a certificate
		{[]string{"serve", "-cert", "/does/not/exist"}, exitUsage},
		{[]string{"serve", "-http", taken}, exitError},
		{[]string{"-config", "/does/not/exist"}, exitError},
		{[]string{"-help"}, 0},
	} {
		cmd, out := process(t, tt.args...)
		_, _ = out.WriteTo(&bytes.Buffer{})
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != tt.want {
			t.Errorf("%q: exit status %d, want %d", tt.args, got, tt.want)
		}
	}
}

// TestFlagsWinOverTheConfiguration, and flows are added to it.
func TestFlagsWinOverTheConfiguration(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	stdin := strings.NewReader(`{"source": "a", "requests": 1000000, "duration": "1h", "flows": [{"kind": "tcp-stream", "target": "` + l.Addr().String() + `"}]}`)
	var out bytes.Buffer
	err = run(t.Context(), []string{"-config", "-", "-source", "b", "-requests", "50", "-flow", "kind=probe target=http://" + l.Addr().String()}, stdin, &out)
	if !errors.Is(err, errFailed) {
		t.Errorf("error %v, want %v", err, errFailed)
	}
	for r, err := range load.Follow(&out) {
		if err != nil || r.Source != "b" || len(r.Flows) != 2 || r.Final && r.Failures() != 50 {
			t.Errorf("%v, %v", r, err)
		}
	}
}

func TestHelp(t *testing.T) {
	if err := run(t.Context(), []string{"-h"}, nil, nil); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("error %v, want %v", err, flag.ErrHelp)
	}
}
