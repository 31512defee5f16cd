package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// asClient makes the test binary a client of the control socket, for a test as another user.
const asClient = "UNDERSTUDY_TEST_CONTROL_CLIENT"

func TestMain(m *testing.M) {
	if names := os.Getenv(asSquatter); names != "" {
		fmt.Println(squat(strings.Split(names, " ")))
		os.Exit(0)
	}
	if os.Getenv(asClient) != "" {
		body, err := ask(StatusPrefix + "/x")
		fmt.Printf("%s|%v", body, err)
		os.Exit(0)
	}
	status := m.Run()
	if err := goleak.Find(); err != nil && status == 0 {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func ask(path string) (string, error) {
	resp, err := NewClient(nil).control.Get("http://agent" + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// echo answers with what it is and the path that it saw.
func echo(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name+r.URL.Path) })
}

func startControl(t *testing.T) {
	t.Helper()
	l, err := Listen()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	mux := http.NewServeMux()
	mux.Handle(StatusPrefix+"/", http.StripPrefix(StatusPrefix, echo("status")))
	mux.Handle(AdminPrefix+"/", http.StripPrefix(AdminPrefix, echo("admin")))
	go func() { done <- Serve(ctx, l, mux, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestControlRoutes(t *testing.T) {
	if _, err := ask("/status/x"); !errors.Is(err, ErrNoAgent) {
		t.Fatalf("without an agent: %v, want ErrNoAgent", err)
	}
	startControl(t)
	for path, want := range map[string]string{
		StatusPrefix + "/healthz/ready": "status/healthz/ready",
		AdminPrefix + "/stats":          "admin/stats",
	} {
		if got, err := ask(path); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	if _, err := Listen(); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("a second agent in one container: %v, want a refusal", err)
	}
}

func TestControlRefusesOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to run a client as another user")
	}
	startControl(t)
	out := clientAs(t, 1000)
	if strings.HasPrefix(out, "status/x") {
		t.Errorf("uid 1000 got an answer from root's agent: %s", out)
	}
	if out := clientAs(t, 0); !strings.Contains(out, "status/x|<nil>") {
		t.Errorf("root got no answer: %s", out)
	}
}

func TestControlClientTrustsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the impostor must be another user than the client")
	}
	name, err := SocketName("self")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", name) // held by root; the client below is uid 1000, so root is trusted
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, echo("impostor"))
	if out := clientAs(t, 1000); !strings.Contains(out, "impostor") {
		t.Errorf("a client must trust root: %s", out)
	}
}

// clientAs runs this test binary as a client of the control socket under uid.
func clientAs(t *testing.T, uid uint32) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{asClient + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("client: %v: %s", err, out)
	}
	return string(out)
}
