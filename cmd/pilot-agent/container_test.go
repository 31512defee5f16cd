package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/overview"
)

// The commands of a container of a pod are run in namespaces of their own, as another
// user and with an empty environment, against a server with the name of the agent's socket.
const asContainer = "UNDERSTUDY_TEST_CONTAINER"

func TestOwnContainer(t *testing.T) {
	if os.Getenv(asContainer) != "" {
		beContainer(t)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, for namespaces of its own")
		}
		t.Skip("needs root, for namespaces of its own")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOwnContainer$", "-test.v")
	cmd.Env = append(os.Environ(), asContainer+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func beContainer(t *testing.T) {
	withoutAgent(t)
	mount, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", "@understudy-"+strings.Trim(strings.TrimPrefix(mount, "mnt:"), "[]"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mux := http.NewServeMux()
	mux.HandleFunc(control.RolePath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(control.RoleStatus{Role: "serving", Settled: true, Drained: true})
	})
	mux.HandleFunc(control.UpgradePath, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(contract.UpgradeStatus{Off: "no hand-off directory"})
	})
	mux.HandleFunc(overview.Path, func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(overview.Overview{Pod: "a.b", Upgrade: contract.UpgradeStatus{Generations: []contract.GenerationStatus{{ID: "g", Self: true, Role: "serving"}}},
			Sidecar: &overview.Sidecar{Tasks: []overview.Task{{Name: "envoy", State: "waiting", Reason: "Envoy\x1b[31m is starting"}}}})
	})
	for page, answer := range map[string]string{
		control.DNSLookupPath:    `{"name":"aliyun.com.","type":"A","source":"vip","host":"aliyun.com","vip":true,"rcode":"NOERROR","records":["aliyun.com. 30 IN A 240.240.1.2"]}`,
		control.DNSTablePath:     `[{"Name":"aliyun.com","Addrs":["240.240.1.2","2001:2::102"],"VIP":true},{"Name":"own.wild.example","Addrs":[],"VIP":false,"Forwarded":true}]`,
		control.DNSCachePath:     `[{"name": "www.example.","type":"A","rcode":"NOERROR","server":"198.51.100.53:53","remainingSeconds":297.4,"hits":12,"bytes":45}]`,
		control.DNSVIPsPath:      `{"pool":{"capacity":65024,"assigned":2,"quarantined":1,"pending":3},"vips":[]}`,
		control.DNSUpstreamsPath: `[{"server":"198.51.100.53:53","state":"failing","inUse":true}]`,
	} {
		mux.HandleFunc(control.StatusPrefix+page, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, answer) })
	}
	told := make(chan string, 4)
	mux.HandleFunc("POST "+control.WaitFailedPath, func(_ http.ResponseWriter, r *http.Request) {
		reason, _ := io.ReadAll(r.Body)
		told <- string(reason)
	})
	mux.HandleFunc(control.StatusPrefix+"/drain", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method, " drained") })
	mux.HandleFunc(control.StatusPrefix+"/x", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Method) })
	go http.Serve(l, mux)
	for _, uid := range []uint32{0, 1337} {
		for _, tc := range []struct{ line, want string }{
			{"wait", ""},
			{"wait --for=drained", ""},
			{"upgrade-status", "Hot upgrade is off: no hand-off directory"},
			{"status", "a.b: serving, not ready\n"},
			{"status", "envoy  waiting  Envoy [31m is starting\n"},
			{"status -o json", `"pod": "a.b"`},
			{"request --debug-port=15020 POST x", "POST"},
			{"request --debug-port=15099 POST x", "POST"},
			{"request POST drain", "POST drained"},
			{"dns lookup aliyun.com", "source:    vip"},
			{"dns table", "aliyun.com        VIP       240.240.1.2"},
			{"dns cache aliyun.com -o json", `"name": "www.example.",`},
			{"dns vips -o=table", "Used: 2 of 65024."},
			{"dns upstreams", "198.51.100.53:53  failing"},
		} {
			if out, err := commandAs(t, uid, tc.line); err != nil || !strings.Contains(out, tc.want) {
				t.Errorf("uid %d: %s: %v: %q, want %q", uid, tc.line, err, out, tc.want)
			}
		}
	}
	out, err := commandAs(t, 1000, "wait --timeoutSeconds=1 --url=http://127.0.0.1:1/")
	if err == nil || !strings.Contains(out, "Last error:") {
		t.Errorf("a URL that nobody answers, with an agent in the container: %v: %q", err, out)
	}
	if out, err := commandAs(t, 1337, "wait --nonsense"); err == nil {
		t.Errorf("wait --nonsense: %q", out)
	}
	close(told)
	for _, want := range []string{"timeout waiting for Envoy proxy", "unknown flag: --nonsense", ""} {
		if reason := <-told; !strings.HasPrefix(reason, want) || (want == "") != (reason == "") {
			t.Errorf("the agent is told %q of a `wait` that failed, want %q", reason, want)
		}
	}
}

// withoutAgent checks the exit status of each command that needs an agent, where there is none.
func withoutAgent(t *testing.T) {
	var asked sync.WaitGroup
	for _, line := range []string{
		"wait --timeoutSeconds=1", "wait --for=drained --timeoutSeconds=1", "upgrade-status", "upgrade-status -o json", "status", "status -o json",
		"request GET stats", "request POST drain", "dns lookup a", "dns table", "dns cache", "dns vips", "dns upstreams", "dns flush",
	} {
		asked.Go(func() { // each looks for an agent for some seconds
			out, err := commandAs(t, 1337, line)
			if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.HasPrefix(out, "pilot-agent: ") {
				t.Errorf("%s: %v: %q, want exit status 1 and the reason", line, err, out)
			}
		})
	}
	asked.Wait()
}

// commandAs runs this test binary as pilot-agent, see TestMain.
func commandAs(t *testing.T, uid uint32, line string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{"pilot-agent"}, strings.Fields(line)...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
