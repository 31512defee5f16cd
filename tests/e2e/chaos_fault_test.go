package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"understudy.mesh/tests/lab"
)

// fault is one kind of bad luck. strike does it to a pod and says what that may cost, and how it went.
type fault struct {
	name   string
	strike func(*testing.T, *chaosPod, *rand.Rand) (toll, string)
}

func faults(t *testing.T, l *lab.Lab) []fault {
	t.Helper()
	return []fault{
		{"the new agent is killed", killAgent},
		{"the new agent is killed", killAgent},
		{"the new Envoy is killed", killEnvoy},
		{"the new Envoy is killed", killEnvoy},
		{"the new Envoy is killed, and then its agent", killBoth},
		{"the new Envoy exits", badEnvoy(exits)},
		{"the new Envoy hangs", badEnvoy(hangs)},
		{"the new Envoy hangs, and ignores SIGTERM", badEnvoy(stubborn)},
		{"the new Envoy never becomes ready", badEnvoy(neverReady)},
		{"garbage on the hand-off socket", garbage},
		{"a wrong user on the hand-off socket", wrongUser},
		{"a full hand-off directory", full(lab.HandoffVolume)},
		{"a full /etc/istio/proxy", full(lab.ProxyVolume)},
		{"a full /dev/shm", full(lab.ShmVolume)},
	}
}

// killAgent is kill -9 of the first process of the container, and so of all of it.
func killAgent(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
	t.Helper()
	m := randomMoment(random)
	l := p.newcomer(t, p.other())
	m.wait(t, l)
	at := time.Now()
	l.slot.Kill()
	return tollOf(t, l, at), m.String()
}

func killEnvoy(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
	t.Helper()
	m := randomMoment(random)
	l := p.newcomer(t, p.other())
	m.wait(t, l)
	if !signalEnvoy(l, syscall.SIGKILL) {
		l.await(t, becameServing)
		return nothing, m.String() + ": there was none"
	}
	toll := tollOfEnvoy(t, l)
	l.await(t, becameServing) // its agent starts another one
	return toll, m.String()
}

func killBoth(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
	t.Helper()
	m, between := randomMoment(random), time.Duration(random.Int64N(int64(warmUp)))
	l := p.newcomer(t, p.other())
	m.wait(t, l)
	signalEnvoy(l, syscall.SIGKILL)
	toll := tollOfEnvoy(t, l)
	<-time.After(between)
	at := time.Now()
	l.slot.Kill()
	return max(toll, tollOf(t, l, at)), fmt.Sprintf("%v, the agent %v later", m, between.Round(time.Millisecond))
}

// Envoys that are none. The last one is a real Envoy with one cluster more, whose control plane
// never answers, and without whose endpoints it does not begin to serve.
const (
	exits      = "#!/bin/sh\nexit 3\n"
	hangs      = "#!/bin/sh\nexec sleep infinity\n"
	stubborn   = "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n"
	neverReady = "#!/bin/sh\nexec " + realEnvoy + ` "$@" --config-yaml '
static_resources:
  clusters:
  - name: silent
    connect_timeout: 600s
    load_assignment: {cluster_name: silent, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 192.0.2.1, port_value: 1}}}}]}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
  - name: never
    type: EDS
    eds_cluster_config:
      eds_config:
        initial_fetch_timeout: 0s
        resource_api_version: V3
        api_config_source: {api_type: GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: silent}}]}
'
`
	realEnvoy = "/usr/local/bin/envoy-proper"
)

// badEnvoy takes over with an Envoy that never serves, which is ended after a while.
func badEnvoy(script string) func(*testing.T, *chaosPod, *rand.Rand) (toll, string) {
	return func(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
		t.Helper()
		path := filepath.Join(p.Dir, fmt.Sprint("envoy-", p.version))
		must(t, os.WriteFile(path, []byte(script), 0o755))
		l := p.newcomer(t, lab.Image{Name: "proxy:bad", Agent: p.newer.Agent, Envoy: path, Files: map[string]string{realEnvoy: p.newer.Envoy}})
		patience := time.Duration(random.Int64N(int64(5 * warmUp)))
		<-time.After(patience)
		if l.said(saysWorkersStart) || l.said(saysEnvoyServes) {
			t.Errorf("an Envoy serves that should not")
		}
		mustEnd(t, l.slot, random)
		return nothing, fmt.Sprintf("ended after %v", patience.Round(time.Millisecond))
	}
}

// garbage is said by somebody of the agent's own user, before and while a newcomer comes.
func garbage(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
	t.Helper()
	connections := 300
	if rounds(t) >= soakRounds {
		connections = 10_000
	}
	a := attack{UID: lab.AgentUID, Connections: connections, Together: 100, Seed: random.Uint64()}
	finish := p.attack(t, a)
	<-time.After(time.Duration(random.Int64N(int64(warmUp))))
	l := p.newcomer(t, p.other())
	got := finish()
	if got.Connected == 0 {
		t.Errorf("the attack met nobody: %+v", got)
	}
	l.await(t, becameServing)
	return nothing, fmt.Sprintf("%+v", got)
}

// wrongUser is root, whom no file mode keeps out, or the application's user.
func wrongUser(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
	t.Helper()
	uid := []int{lab.RootUID, lab.AppUID}[random.IntN(2)]
	got := p.attack(t, attack{UID: uid, Connections: 100, Together: 20, Seed: random.Uint64()})()
	if got.Answered > 0 || uid == lab.AppUID && got.Connected > 0 {
		t.Errorf("uid %d: %+v", uid, got)
	}
	return nothing, fmt.Sprintf("uid %d: %+v", uid, got)
}

// attack begins one on the socket of the generation that serves; finish waits for its end.
func (p *chaosPod) attack(t *testing.T, a attack) (finish func() attacked) {
	t.Helper()
	a.Socket = p.portrait(t).ID + ".sock"
	text, err := json.Marshal(a)
	must(t, err)
	cmd := p.Pod.Self(t, roleEnv+"="+attackRole)
	cmd.Dir = filepath.Join(p.slots.VolumePath(lab.HandoffVolume, 0), fmt.Sprint("understudy-", lab.AgentUID))
	cmd.Stdin = bytes.NewReader(text)
	must(t, cmd.Start())
	return func() (got attacked) {
		t.Helper()
		err := cmd.Wait()
		if err == nil {
			err = json.Unmarshal(cmd.Stdout.(*bytes.Buffer).Bytes(), &got)
		}
		if err != nil {
			t.Fatalf("attack: %v: %s", err, cmd.Stderr)
		}
		return got
	}
}

// full leaves no byte in a volume while a newcomer comes, and frees it afterwards.
func full(volume string) func(*testing.T, *chaosPod, *rand.Rand) (toll, string) {
	return func(t *testing.T, p *chaosPod, random *rand.Rand) (toll, string) {
		t.Helper()
		filler := filepath.Join(p.slots.VolumePath(volume, 0), "filler")
		f, err := os.Create(filler)
		must(t, err)
		for err == nil {
			_, err = f.Write(make([]byte, 512))
		}
		if !strings.Contains(err.Error(), "no space") {
			t.Fatalf("fill %s up: %v", volume, err)
		}
		l := p.newcomer(t, p.other())
		<-time.After(warmUp + time.Duration(random.Int64N(int64(warmUp))))
		must(t, os.Remove(filler))
		_ = f.Close()
		if l.said(saysWorkersStart) || l.said(saysTakingOver) && l.said(saysEnvoyStarted) {
			l.await(t, becameServing) // it needs no space there
			return nothing, "taken over all the same"
		}
		mustEnd(t, l.slot, random)
		return tollOf(t, l, time.Now()), "not taken over" // it may just have tried again
	}
}
