package skew_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"understudy.mesh/tests/lab"
	"understudy.mesh/tests/load"
)

const (
	// drain is --upgradeDrainDuration: longer than any connection of the load.
	drain = 20 * time.Second
	// streamLife ends the streams of the load before the drain would.
	streamLife = time.Second
	// workers is how many requests of a flow there are at a time.
	workers = 4
	// requestTimeout is when a request counts as lost: long after a machine that does nothing for some seconds goes on.
	requestTimeout = 20 * time.Second
	// vips is how the address of a host without one begins.
	vips = "240.240."
	// proxyConfig has Envoy keep its counters of each cluster.
	proxyConfig = "PROXY_CONFIG={terminationDrainDuration: 1s, concurrency: 2, proxyStatsMatcher: {inclusionPrefixes: [cluster.outbound]}}"
	// shop is the mesh's host that the load asks for.
	shop, shopAddr = "shop.example", "198.51.100.11"
	// elsewhere is a name that the agent forwards.
	elsewhere, elsewhereAddr = "elsewhere.test", "198.51.100.12"
)

func TestMain(m *testing.M) {
	ran, err := lab.RunTraffic()
	if !ran {
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// releases are the two that meet, with an Envoy each.
type releases struct{ before, this lab.Image }

// newReleases skips the test where the one before cannot be made.
func newReleases(t *testing.T) releases {
	t.Helper()
	return releases{
		before: lab.Image{Name: "the release before", Agent: predecessor(t), Envoy: lab.OtherEnvoyBinary(t)},
		this:   lab.Image{Name: "this release", Agent: lab.AgentBinary(t), Envoy: lab.EnvoyBinary(t)},
	}
}

// pod has two slots, of which one serves, an application, and an outside.
type pod struct {
	*lab.Lab
	slots   *lab.Slots
	dns     *lab.DNSServer
	vip     string // of shop
	serving int    // the slot
	version int    // SIDECARSET_VERSION of the last start
}

// newPod makes a pod in which an image serves. documents are its configuration besides the load's.
func newPod(t *testing.T, first lab.Image, o lab.SlotsOptions, documents ...string) *pod {
	t.Helper()
	l := lab.New(t)
	o.Args = append(o.Args, "--upgradeDrainDuration", drain.String())
	o.Env = append(o.Env, proxyConfig)
	p := &pod{Lab: l, slots: l.NewSlots(t, o)}
	p.dns = l.StartDNS(t, map[string][]string{shop: {shopAddr}, elsewhere: {elsewhereAddr}})
	lab.ServeHTTP(t, l.Out.Listen(t, shopAddr+":80"), "shop")
	lab.ServeHTTP(t, l.Pod.Listen(t, "[::]:8080"), "app")
	lab.ServeTCP(l.Pod.Listen(t, "[::]:9000"), lab.Echo)
	l.Capture(t)
	p.write(t, "mesh.yaml", append(documents, entry(shop))...)
	p.start(t, 0, first)
	p.slots.List[0].WaitRole(t, lab.RoleServing)
	lab.Eventually(t, lab.SettleWithin, "the pod is ready", p.ready)
	p.vip = p.mustLookUp(t, shop)
	return p
}

// entry is a ServiceEntry of HTTP for a host without an address.
func entry(host string) string {
	return fmt.Sprintf(`apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %s}
spec: {hosts: [%s], location: MESH_EXTERNAL, ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
`, strings.ReplaceAll(host, ".", "-"), host)
}

func (p *pod) write(t *testing.T, name string, documents ...string) {
	t.Helper()
	p.slots.Write(t, name, strings.Join(documents, "---\n"))
}

// start runs an image in a slot, as the next generation.
func (p *pod) start(t *testing.T, slot int, image lab.Image) *lab.Agent {
	t.Helper()
	p.version++
	err := p.slots.List[slot].Start(image, fmt.Sprintf("%s=%d", lab.VersionEnv, p.version), fmt.Sprintf("%s=%d", lab.VersionAltEnv, p.version-1))
	if err != nil {
		t.Fatal(err)
	}
	return p.slots.List[slot].Agent()
}

// newcomer runs an image in the slot that does not serve, after what stands by there has ended.
func (p *pod) newcomer(t *testing.T, image lab.Image) (*lab.Slot, *lab.Agent) {
	t.Helper()
	slot := 1 - p.serving
	if code, was := p.slots.List[slot].Stop(lab.Deadline); was && code != 0 {
		t.Errorf("the standby in %s: exit status %d", p.slots.List[slot].Name, code)
	}
	return p.slots.List[slot], p.start(t, slot, image)
}

// upgrade has an image take over, and returns when what served before stands by.
func (p *pod) upgrade(t *testing.T, image lab.Image) {
	t.Helper()
	slot, _ := p.newcomer(t, image)
	slot.WaitRole(t, lab.RoleServing)
	p.slots.List[p.serving].WaitRole(t, lab.RoleStandby)
	p.serving = 1 - p.serving
}

// mustBeServedBy demands that an image serves, with its own Envoy and no other.
func (p *pod) mustBeServedBy(t *testing.T, image lab.Image) {
	t.Helper()
	version := lab.EnvoyVersion(t, image.Envoy)
	slot := p.slots.List[p.serving]
	lab.Eventually(t, lab.SettleWithin, image.Name+" serves", func() error {
		if running, _ := slot.Running(); running.Name != image.Name {
			return fmt.Errorf("%s is in %s", running.Name, slot.Name)
		}
		_, self, err := slot.UpgradeStatus()
		if err == nil && (self.Role != lab.RoleServing || !strings.Contains(self.EnvoyVersion, version)) {
			err = fmt.Errorf("%s says that it is %+v", slot.Name, self)
		}
		if envoys := p.ProcessesOf(lab.EnvoyPath); len(envoys) != 1 {
			err = errors.Join(err, fmt.Errorf("%d Envoys: %q", len(envoys), envoys))
		}
		return errors.Join(err, p.ready())
	})
}

func (p *pod) ready() error {
	return answers(p.Out, "http://"+lab.PodIP+":"+lab.HealthPort+"/healthz/ready")
}

// answers demands a 200.
func answers(n *lab.Namespace, url string) error {
	status, body, err := n.Get(url)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("status %d: %.200s", status, body)
	}
	return err
}

// lookUp returns the addresses that the application gets for a host, of both families.
func (p *pod) lookUp(host string) (string, error) {
	v4, err4 := p.Pod.Lookup(host, dns.TypeA)
	v6, err6 := p.Pod.Lookup(host, dns.TypeAAAA)
	return fmt.Sprint(v4, v6), errors.Join(err4, err6)
}

// mustLookUp waits until a host has a VIP, and returns it.
func (p *pod) mustLookUp(t *testing.T, host string) (vip string) {
	t.Helper()
	lab.Eventually(t, lab.Deadline, "the VIP of "+host, func() error {
		addrs, err := p.Pod.Lookup(host, dns.TypeA)
		if err == nil && (len(addrs) != 1 || !strings.HasPrefix(addrs[0].String(), vips)) {
			err = fmt.Errorf("%s is %v", host, addrs)
		}
		if err == nil {
			vip = addrs[0].String()
		}
		return err
	})
	return vip
}

// startLoad begins a share of the load (0 to 1).
func (p *pod) startLoad(t *testing.T, share float64) *lab.Traffic {
	t.Helper()
	app, server := "http://"+lab.PodIP, lab.NameServer+":53"
	sides := []lab.TrafficSide{{From: p.Out, Flows: []load.Flow{
		{Name: "in, new", Kind: load.HTTP1New, Target: app + ":8080/", Rate: 60},
		{Name: "in, kept", Kind: load.HTTP1Keep, Target: app + ":8080/", Rate: 30},
		{Name: "in, HTTP/2", Kind: load.HTTP2, Target: app + ":8080/", Rate: 30},
		{Name: "in, stream", Kind: load.TCPStream, Target: lab.PodIP + ":9000", Rate: 30, Life: load.Duration(streamLife)},
		{Name: "probe 15020", Kind: load.Probe, Target: app + ":" + lab.StatusPort + "/healthz/ready", Rate: 10},
		{Name: "probe 15021", Kind: load.Probe, Target: app + ":" + lab.HealthPort + "/healthz/ready", Rate: 10},
	}}, {From: p.Pod, Flows: []load.Flow{
		{Name: "out, new", Kind: load.HTTP1New, Target: "http://" + shop + "/", Connect: p.vip + ":80", Rate: 60, Want: "server=shop"},
		{Name: "DNS", Kind: load.DNSUDP, Target: server, Names: []string{shop}, Want: p.vip, Rate: 60, NewSocket: true},
		{Name: "DNS, TCP", Kind: load.DNSTCP, Target: server, Names: []string{shop}, Want: p.vip, Rate: 20, NewSocket: true},
		{Name: "DNS, forwarded", Kind: load.DNSUDP, Target: server, Names: []string{elsewhere}, Want: elsewhereAddr, Rate: 20, NewSocket: true},
		{Name: "admin", Kind: load.Probe, Target: "http://127.0.0.1:" + lab.AdminPort + "/ready", Rate: 10},
	}}}
	for _, side := range sides {
		for i := range side.Flows {
			side.Flows[i].Rate *= share
			side.Flows[i].Workers, side.Flows[i].Timeout = workers, load.Duration(requestTimeout)
		}
	}
	return lab.StartTraffic(t, sides...)
}

// check ends the load and demands that each flow was answered, and that no more was lost than may be:
// the requests of each flow that an Envoy had in flight as it was killed.
func check(t *testing.T, what string, tr *lab.Traffic, inFlight uint64) {
	t.Helper()
	report, err := tr.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Flows {
		if f.Total.OK == 0 {
			t.Errorf("%s: the load %q got no answer: %v", what, f.Name, f.Failures)
		}
		for class, n := range f.Total.Failed {
			cut := class == load.Reset || class == load.EOF || class == load.Timeout && f.Kind == load.DNSUDP
			if n > 0 && !(cut && n <= inFlight) {
				t.Errorf("%s: %s: %d of %d %s; the first: %v", what, f.Name, n, f.Total.OK+n, class, f.Failures[:min(3, len(f.Failures))])
			}
		}
	}
	t.Logf("%s: %d requests answered, %d lost", what, report.Total().OK, report.Failures())
}

// ofTheMachine is in warnings that a cold start on this machine has as well.
var ofTheMachine = []string{"the limit of open files bounds"}

// complaints are the lines of a log from a position on in which an agent says that something is wrong.
func complaints(l *lab.Log, position int) []string {
	lines := strings.Split(l.String()[position:], "\n")
	return slices.DeleteFunc(lines, func(line string) bool {
		if slices.ContainsFunc(ofTheMachine, func(words string) bool { return strings.Contains(line, words) }) {
			return true
		}
		return !strings.HasPrefix(line, "pilot-agent: ") && !strings.Contains(line, "\twarn\t") && !strings.Contains(line, "\terror\t")
	})
}
