package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/tests/lab"
)

// Roles, as `upgrade-status -o json` gives them.
const (
	roleServing  = lab.RoleServing
	roleDraining = lab.RoleDraining
	roleStandby  = lab.RoleStandby
)

const settleWithin = lab.SettleWithin

// manualWait is the postStart hook of the manual's SidecarSet.
var manualWait = []string{"/bin/sh", "-c", "/usr/local/bin/pilot-agent wait"}

// slotPod is a pod with two slots, an outside, and an application on port 8080.
type slotPod struct {
	*lab.Lab
	dns     *lab.DNSServer
	slots   *lab.Slots
	kubelet *lab.Kubelet // nil without Kruise
	kruise  *lab.Kruise
	// address is where clients connect to: the pod's own, and with Kruise its Service's, which has the pod while that is ready.
	address string
	// older and newer are two releases: the same agent with two versions of Envoy. empty is the standby's.
	older, newer, empty lab.Image
	// probes are the ports whose readiness the load asks for.
	probes []string
	// statusPort is where the agent's server is.
	statusPort string
}

// newSlotPod makes the pod's surroundings; nothing runs in the slots.
func newSlotPod(t *testing.T, o lab.SlotsOptions) *slotPod {
	t.Helper()
	l := lab.New(t)
	server := l.StartDNS(t, outside)
	for _, addr := range []string{"198.51.100.11:80", "[2001:db8::11]:80"} {
		lab.ServeHTTP(t, l.Out.Listen(t, addr), "http")
	}
	lab.ServeHTTP(t, l.Pod.Listen(t, "[::]:8080"), "app")
	lab.ServeTCP(l.Pod.Listen(t, "[::]:9000"), lab.Echo)
	l.Capture(t)
	p := &slotPod{Lab: l, dns: server, address: lab.PodIP, slots: l.NewSlots(t, o), probes: []string{lab.StatusPort, lab.HealthPort}, statusPort: lab.StatusPort,
		older: lab.Image{Name: "proxy:older", Agent: lab.AgentBinary(t), Envoy: lab.OtherEnvoyBinary(t)},
		newer: lab.Image{Name: "proxy:newer", Agent: lab.AgentBinary(t), Envoy: lab.EnvoyBinary(t)},
		empty: lab.Image{Name: "proxy:empty", Agent: lab.StandbyBinary(t)},
	}
	p.slots.Write(t, "mesh.yaml", documents(aliyun, entry("http", "http.example", 80, "HTTP", "DNS")))
	return p
}

// newKruisePod makes a pod that Kruise has injected with the older image, and waits until it serves.
func newKruisePod(t *testing.T, o lab.SlotsOptions, k lab.KubeletOptions) *slotPod {
	t.Helper()
	p := newSlotPod(t, o)
	p.inject(t, k)
	return p
}

// inject lets Kruise inject the older image, and waits until that serves whoever connects to the pod's Service.
func (p *slotPod) inject(t *testing.T, k lab.KubeletOptions) {
	t.Helper()
	k.ReadinessProbe = "http://" + lab.PodIP + ":8080/"
	p.kubelet = lab.NewKubelet(t, p.slots, k)
	p.kruise = lab.NewKruise(t, p.kubelet, p.older, p.empty)
	lab.NewService(t, p.kubelet)
	p.address = lab.ServiceIP
	p.kruise.WaitUpgraded(t)
	p.waitReady(t)
	lab.Eventually(t, settleWithin, "the Service has the pod", p.flows)
}

func (p *slotPod) slot(i int) *lab.Slot { return p.slots.List[i] }

// start runs an image in a slot, where there is no Kruise; env as Kruise's annotations give it.
func (p *slotPod) start(t *testing.T, slot int, image lab.Image, version, alt int) {
	t.Helper()
	must(t, p.slot(slot).Start(image, fmt.Sprintf("%s=%d", lab.VersionEnv, version), fmt.Sprintf("%s=%d", lab.VersionAltEnv, alt)))
}

func (p *slotPod) waitReady(t *testing.T) {
	t.Helper()
	lab.Eventually(t, settleWithin, "the pod is ready", p.ready)
}

func (p *slotPod) ready() error { return answers(p.Out, "http://"+lab.PodIP+":15021/healthz/ready") }

// upgradeStatus asks the agent in a slot.
func (p *slotPod) upgradeStatus(slot int) (all contract.UpgradeStatus, self contract.GenerationStatus, err error) {
	return p.slot(slot).UpgradeStatus()
}

// inRole returns nil when the slot's agent has one of the roles.
func (p *slotPod) inRole(slot int, roles ...string) error { return p.slot(slot).InRole(roles...) }

func (p *slotPod) waitRole(t *testing.T, slot int, roles ...string) {
	t.Helper()
	p.slot(slot).WaitRole(t, roles...)
}

// mustServe demands that in the end the slot's agent serves with its image's Envoy, that no other
// Envoy is left, that the pod is ready and its traffic flows.
func (p *slotPod) mustServe(t *testing.T, slot int, image lab.Image) {
	t.Helper()
	version := lab.EnvoyVersion(t, image.Envoy)
	p.waitRole(t, slot, roleServing)
	lab.Eventually(t, settleWithin, "one Envoy serves, and it is "+version, func() error {
		if envoys := p.ProcessesOf(lab.EnvoyPath); len(envoys) != 1 {
			return fmt.Errorf("%d Envoys: %q", len(envoys), envoys)
		}
		_, self, err := p.upgradeStatus(slot)
		if err != nil {
			return err
		}
		if !strings.Contains(self.EnvoyVersion, version) || len(self.Sockets) == 0 {
			return fmt.Errorf("%s says that it serves with %+v", p.slot(slot).Name, self)
		}
		_, info, err := p.Pod.Get("http://127.0.0.1:15000/server_info")
		if err == nil {
			err = contains(info, `"LIVE"`, "/"+version+"/")
		}
		return errors.Join(err, p.ready(), p.flows(), p.toldOutside(func(g contract.GenerationStatus) error {
			if !g.Self || g.Role != roleServing || !strings.Contains(g.EnvoyVersion, version) {
				return fmt.Errorf("the one that serves is told as %+v", g)
			}
			return nil
		}))
	})
}

// toldOutside asks the status port from elsewhere what the pod's generations do, until one suits.
func (p *slotPod) toldOutside(suits func(contract.GenerationStatus) error) error {
	_, body, err := p.Out.Get("http://" + lab.PodIP + ":" + p.statusPort + contract.UpgradePath)
	if err != nil {
		return err
	}
	var all contract.UpgradeStatus
	if err := json.Unmarshal([]byte(body), &all); err != nil {
		return fmt.Errorf("%w: %s", err, body)
	}
	for _, g := range all.Generations {
		if err = suits(g); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w: %s", err, body)
}

// flows does one request of each kind.
func (p *slotPod) flows() error {
	return errors.Join(answers(p.Out, "http://"+p.address+":8080/"), resolves(p.Pod))
}

// onlyOneServes looks at all slots and returns the one that serves, when it is the only one and
// all others stand by.
func (p *slotPod) onlyOneServes() (slot int, err error) {
	slot = -1
	for i := range p.slots.List {
		_, self, err := p.upgradeStatus(i)
		switch {
		case err != nil:
			return -1, err
		case self.Role == roleServing && slot >= 0:
			return -1, fmt.Errorf("%s and %s serve", p.slot(slot).Name, p.slot(i).Name)
		case self.Role == roleServing:
			slot = i
		case self.Role != roleStandby:
			return -1, fmt.Errorf("%s is %s", p.slot(i).Name, self.Role)
		}
	}
	if slot < 0 {
		return -1, errors.New("none serves")
	}
	return slot, nil
}

// lastAttempt is what the slot's agent says of its last hand-off.
func (p *slotPod) lastAttempt(slot int) (contract.Attempt, error) {
	_, self, err := p.upgradeStatus(slot)
	if err != nil {
		return contract.Attempt{}, err
	}
	if self.LastAttempt == nil {
		return contract.Attempt{}, fmt.Errorf("%s knows of no hand-off", p.slot(slot).Name)
	}
	return *self.LastAttempt, nil
}
