package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
)

const (
	appHTTP, appEcho = "8080", "9000"
	shopHost         = "shop.example.com"
	shopAddr         = "198.51.100.10:80"
	// elsewhereHost is unknown to the mesh: its queries are forwarded, and cached.
	elsewhereHost, elsewhereIP = "elsewhere.example.net", "198.51.100.30"
)

const shopEntry = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: shop}
spec:
  hosts: [` + shopHost + `]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  location: MESH_EXTERNAL
`

// postStart is the hook of both slots in the manual's SidecarSet.
var postStart = []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait"}

// graceMargin is what the pod's grace period has over the drain: nothing is killed.
const graceMargin = 10 * time.Second

// release is an Envoy that the pod's proxy may have.
type release struct{ path, version string }

// pod is what is upgraded, and what it talks to.
type pod struct {
	*lab.Lab
	slots    *lab.Slots
	kubelet  *lab.Kubelet
	kruise   *lab.Kruise
	releases [2]release // of the even and the odd images
	load     string     // path of the load generator
	vip      netip.Addr // of shopHost
}

// newPod makes the pod and its surroundings; nothing runs in the slots.
func newPod(t lab.T, s settings) *pod {
	p := &pod{Lab: lab.New(t), releases: [2]release{newRelease(t, lab.EnvoyBinary(t)), newRelease(t, lab.OtherEnvoyBinary(t))}}
	p.load = buildLoad(t, p.Dir)
	p.StartDNS(t, map[string][]string{shopHost: {strings.TrimSuffix(shopAddr, ":80")}, elsewhereHost: {elsewhereIP}})
	p.serve(t, 1, p.Out.Command(context.Background(), p.load, "serve", "-name", "shop", "-http", shopAddr))
	p.serve(t, 2, p.asApp(p.load, "serve", "-name", "app", "-http", "0.0.0.0:"+appHTTP, "-echo", "0.0.0.0:"+appEcho))
	p.Capture(t)
	args := []string{"--upgradeDrainDuration", s.drain.String()}
	if s.verbose {
		args = append(args, "--log_output_level", "default:info,agent:debug,hotrestart:debug")
	}
	p.slots = p.NewSlots(t, lab.SlotsOptions{Args: args})
	p.slots.Write(t, "shop.yaml", shopEntry)
	// A soak does in an hour what a pod of a cluster, which has the kubelet's default, does in years.
	p.kubelet = lab.NewKubelet(t, p.slots, lab.KubeletOptions{
		PostStart: postStart, ReadinessProbe: "http://" + lab.PodIP + ":" + appHTTP + "/", Grace: s.drain + graceMargin, MaxRestartPeriod: lab.QuickRestarts,
	})
	lab.NewService(t, p.kubelet)
	return p
}

// start lets Kruise inject the first image, and waits until it serves.
func (p *pod) start(t lab.T) {
	empty := lab.Image{Name: "proxy:empty", Agent: lab.StandbyBinary(t)}
	p.kruise = lab.NewKruise(t, p.kubelet, p.image(t, 0), empty)
	p.kruise.WaitUpgraded(t)
	lab.Eventually(t, lab.Deadline, "the Service has the pod", func() error {
		_, _, err := p.Out.Get("http://" + lab.ServiceIP + ":" + appHTTP + "/")
		return err
	})
	addrs, err := p.Pod.Lookup(shopHost, dns.TypeA)
	if err != nil || len(addrs) == 0 {
		t.Fatalf("%s has no address in the pod: %v", shopHost, err)
	}
	p.vip = addrs[0]
}

// image is what the pod is upgraded to in the nth upgrade; 0 is what it begins with.
func (p *pod) image(t lab.T, n int) lab.Image {
	return lab.Image{Name: imageName(n), Agent: lab.AgentBinary(t), Envoy: p.release(n).path}
}

func imageName(n int) string { return fmt.Sprintf("proxy:v%d", n+1) }

func (p *pod) release(n int) release { return p.releases[n%len(p.releases)] }

// asApp is a command of the application's user.
func (p *pod) asApp(argv ...string) *exec.Cmd {
	uid := fmt.Sprint(lab.AppUID)
	return p.Pod.Command(context.Background(), append([]string{"setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"}, argv...)...)
}

// serve runs a server until the demo ends, and waits until it has said of each listener that it is there.
func (p *pod) serve(t lab.T, listeners int, cmd *exec.Cmd) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("make a server's pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start a server: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for range listeners {
		if !lines.Scan() {
			t.Fatalf("%v: it ended before it listened", cmd)
		}
	}
}

func newRelease(t lab.T, path string) release {
	return release{path: path, version: lab.EnvoyVersion(t, path)}
}

// buildLoad makes the load generator: it runs as processes of its own, as other users.
func buildLoad(t lab.T, dir string) string {
	path := filepath.Join(dir, "understudy-load")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./tests/load/cmd/understudy-load")
	cmd.Dir = lab.RepoRoot(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the load generator: %v: %s", err, out)
	}
	return path
}
