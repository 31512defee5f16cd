package e2e_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// TestBadStart starts agents that cannot work, in one namespace: each has to end with the right
// status and one line that names source, key and value.
func TestBadStart(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	l.StartDNS(t, outside)
	envoy := lab.EnvoyBinary(t)
	const noEnvoy = "none"
	noExec := filepath.Join(l.Dir, "not-executable")
	must(t, os.WriteFile(noExec, []byte("nothing"), 0o644))
	for _, tc := range []struct {
		name      string
		container lab.ContainerOptions
		agent     lab.AgentOptions
		code      int
		words     []string
	}{
		{name: "wrong duration flag", agent: lab.AgentOptions{Args: []string{"--drainDuration=soon"}}, code: 2, words: []string{"drainDuration", "soon"}},
		{name: "wrong number flag", agent: lab.AgentOptions{Args: []string{"--concurrency", "many"}}, code: 2, words: []string{"concurrency", "many"}},
		{name: "wrong port flag", agent: lab.AgentOptions{Args: []string{"--statusPort", "70000"}}, code: 2, words: []string{"statusPort", "70000"}},
		{name: "wrong environment", agent: lab.AgentOptions{Env: []string{"DNS_FORWARD_TIMEOUT=long"}}, code: 1, words: []string{"DNS_FORWARD_TIMEOUT", "long"}},
		{name: "wrong DNS address", agent: lab.AgentOptions{Env: []string{"DNS_PROXY_ADDR=nowhere"}}, code: 1, words: []string{"DNS_PROXY_ADDR", "nowhere"}},
		{name: "two wrong at once", agent: lab.AgentOptions{Env: []string{"DNS_FORWARD_TIMEOUT=long", "ISTIO_META_DNS_CAPTURE=perhaps"}}, code: 1, words: []string{"DNS_FORWARD_TIMEOUT", "ISTIO_META_DNS_CAPTURE", "perhaps"}},
		{name: "PROXY_CONFIG is no YAML", agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={"}}, code: 1, words: []string{"PROXY_CONFIG"}},
		{name: "PROXY_CONFIG with a wrong type", agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={drainDuration: [1]}"}}, code: 1, words: []string{"PROXY_CONFIG", "drainDuration"}},
		{name: "no such directory", agent: lab.AgentOptions{ConfigDir: "/config/nowhere"}, code: 1, words: []string{"/config/nowhere"}},
		{name: "a file as directory", agent: lab.AgentOptions{ConfigDir: "/etc/passwd"}, code: 1, words: []string{"/etc/passwd"}},
		{name: "no Envoy", container: lab.ContainerOptions{Envoy: noEnvoy}, code: 1, words: []string{lab.EnvoyPath}},
		{name: "Envoy is not executable", container: lab.ContainerOptions{Envoy: noExec}, code: 1, words: []string{lab.EnvoyPath}},
		{name: "socket path too long",
			agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={configPath: /etc/istio/proxy/" + strings.Repeat("p", 110) + "}"}}, code: 1, words: []string{"107", "/etc/istio/proxy/ppp"}},
		{name: "configPath cannot be made",
			agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={configPath: /nowhere/proxy}"}}, code: 1, words: []string{"/nowhere"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.container.ReadOnly = true
			switch tc.container.Envoy {
			case "":
				tc.container.Envoy = envoy
			case noEnvoy:
				tc.container.Envoy = ""
			}
			a := l.NewContainer(t, tc.container).StartAgent(t, tc.agent)
			code := a.Wait(t, lab.Deadline)
			if err := contains(a.Log.String(), tc.words...); code != tc.code || err != nil {
				t.Errorf("exit status %d, want %d; %v", code, tc.code, err)
			}
			if strings.Contains(a.Log.String(), "goroutine ") {
				t.Errorf("it panicked:\n%s", a.Log)
			}
			if left := l.Processes(); len(left) != 0 {
				t.Errorf("it left processes: %q", left)
			}
		})
	}
}

// TestPortsTaken occupies one of the agent's ports after the other.
func TestPortsTaken(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ network, addr string }{
		{"tcp", "127.0.0.1:15000"}, {"tcp", ":15020"}, {"tcp", ":15021"},
		{"udp", "127.0.0.1:15053"}, {"tcp", "127.0.0.1:15053"}, {"udp", "[::1]:15053"},
	} {
		t.Run(tc.network+" "+tc.addr, func(t *testing.T) {
			l := lab.New(t)
			if tc.network == "udp" {
				l.Pod.ListenPacket(t, tc.addr)
			} else {
				l.Pod.Listen(t, tc.addr)
			}
			a := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)}).StartAgent(t, lab.AgentOptions{})
			code := a.Wait(t, lab.Deadline)
			_, port, _ := net.SplitHostPort(tc.addr)
			if err := contains(a.Log.String(), port, "address already in use"); code != 1 || err != nil {
				t.Errorf("exit status %d, want 1; %v", code, err)
			}
			if left := l.Processes(); len(left) != 0 {
				t.Errorf("it left processes: %q", left)
			}
		})
	}
}

// TestEnvoyPortsTaken occupies one of Envoy's ports: the agent either ends and says so, or its
// readiness does.
func TestEnvoyPortsTaken(t *testing.T) {
	t.Parallel()
	for _, port := range []string{lab.OutboundPort, lab.InboundPort, lab.EnvoyStats} {
		t.Run(port, func(t *testing.T) {
			l := lab.New(t)
			l.Pod.Listen(t, ":"+port)
			a := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)}).StartAgent(t, lab.AgentOptions{})
			eventually(t, "the port is named", func() error {
				select {
				case <-a.Done():
					return contains(a.Log.String(), port)
				default:
				}
				err := a.Ready()
				if err == nil {
					t.Fatal("the agent is ready without the port")
				}
				return contains(err.Error(), port)
			})
		})
	}
}

// TestOddStart starts agents in places that are unusual but good enough: they have to get ready.
func TestOddStart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		pod  podOptions
		log  string
	}{
		{name: "/dev/shm is not writable", pod: podOptions{container: lab.ContainerOptions{ReadOnlyShm: true}}},
		{name: "no resolv.conf", pod: podOptions{container: lab.ContainerOptions{NoResolvConf: true}, noCapture: true}, log: `/etc/resolv\.conf`},
		{name: "unknown flag", pod: podOptions{agent: lab.AgentOptions{Args: []string{"--noSuchFlag=1", "--nor-this"}}}, log: `noSuchFlag`},
		{name: "unknown field in PROXY_CONFIG", pod: podOptions{agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={nosuchfield: 1}"}}}, log: `nosuchfield`},
		{name: "the manual's flags", pod: podOptions{agent: lab.AgentOptions{Args: []string{"--serviceCluster", "app.default", "--drainDuration", "45s",
			"--parentShutdownDuration", "1m0s", "--discoveryAddress", "istiod.istio-system.svc:15012", "--proxyLogLevel=warning",
			"--proxyComponentLogLevel=misc:error", "--trust-domain=cluster.local", "--concurrency", "2", "--log_output_level=default:info"}}}},
		{name: "JSON logs", pod: podOptions{agent: lab.AgentOptions{Args: []string{"--log_as_json"}}}, log: `"level":"info"`},
		{name: "relative configPath", pod: podOptions{agent: lab.AgentOptions{Env: []string{"PROXY_CONFIG={configPath: ./etc/istio/proxy/sub, terminationDrainDuration: 1s}"}}}},
		{name: "status port of the manual", pod: podOptions{agent: lab.AgentOptions{Args: []string{"--statusPort", "15021"}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.pod.files = map[string]string{"mesh.yaml": aliyun}
			p := newPod(t, tc.pod)
			if tc.log != "" {
				p.agent.Log.WaitFor(t, tc.log)
			}
			m, err := p.Pod.Exchange("udp", "127.0.0.1:"+lab.DNSPort, "aliyun.com", dns.TypeA)
			if err != nil || len(m.Answer) != 1 {
				t.Errorf("a host of the mesh: %v, %v", m, err)
			}
		})
	}
}

// TestIPv4Only starts an agent in a pod whose kernel has no IPv6.
func TestIPv4Only(t *testing.T) {
	t.Parallel()
	l := lab.NewWith(t, lab.Options{IPv4Only: true})
	ns := l.Out.ListenPacket(t, lab.NameServer+":53")
	_ = ns.Close()
	c := l.NewContainer(t, lab.ContainerOptions{ReadOnly: true, Envoy: lab.EnvoyBinary(t)})
	c.Write(t, "mesh.yaml", documents(aliyun, static("s", "static.example", 81, "HTTP", "198.51.100.12", 8012)))
	lab.ServeHTTP(t, l.Out.Listen(t, "198.51.100.12:8012"), "static")
	l.Capture(t)
	p := &pod{Lab: l, c: c, agent: c.StartAgent(t, lab.AgentOptions{})}
	p.agent.WaitReady(t)
	if got := get(t, p.dialHost(t, "static.example", 81), "static.example"); got["server"] != "static" {
		t.Errorf("by VIP: %v", got)
	}
	if addrs, err := p.Pod.Lookup("aliyun.com", dns.TypeAAAA); err != nil || len(addrs) != 0 {
		t.Errorf("AAAA in a pod without IPv6: %v, %v, want NODATA", addrs, err)
	}
}
