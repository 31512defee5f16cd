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
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/control"
	"understudy.mesh/tests/lab"
)

// slotPod is a pod with two slots, whose generations take over from one another.
type slotPod struct {
	*lab.Lab
	slots   *lab.Slots
	image   lab.Image
	version int // of the generation that was started last
}

// generation is one agent that was started in a slot.
type generation struct {
	slot   *lab.Slot
	agent  *lab.Agent
	client *http.Client // speaks to its control socket, whoever has the ports
}

// newSlotPod makes the pod's surroundings, with so many ServiceEntries and further arguments of the agent's; nothing runs.
func newSlotPod(t lab.T, entries int, args ...string) *slotPod {
	l := lab.New(t)
	l.StartDNS(t, nil)
	p := &slotPod{Lab: l, slots: l.NewSlots(t, lab.SlotsOptions{Args: append([]string{"--log_output_level", "default:info,agent:debug"}, args...)})}
	p.slots.Write(t, "bench.yaml", entriesYAML(entries))
	p.image = p.newImage(t, "proxy", lab.EnvoyBinary(t))
	return p
}

// newImage has copies of its programs: a page is counted in proportion to those who share it, and
// what else runs on this machine is not the pod's. Nothing of them is in the page cache, where
// what was just written lies in larger pieces than what is read by and by: a process maps those whole.
func (p *slotPod) newImage(t lab.T, name, envoy string) lab.Image {
	return lab.Image{Name: name, Agent: p.copyProgram(t, name, lab.AgentBinary(t)), Envoy: p.copyProgram(t, name, envoy)}
}

func (p *slotPod) copyProgram(t lab.T, image, path string) string {
	copied := filepath.Join(p.Dir, image+"-"+filepath.Base(path))
	if err := copyUncached(path, copied); err != nil {
		t.Fatalf("copy a program: %v", err)
	}
	return copied
}

func copyUncached(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}

// start runs a generation that is newer than those before it.
func (p *slotPod) start(t lab.T, slot int, image lab.Image) *generation {
	s := p.slots.List[slot]
	p.version++
	version, before := fmt.Sprintf("%s=%d", lab.VersionEnv, p.version), fmt.Sprintf("%s=%d", lab.VersionAltEnv, p.version-1)
	if err := s.Start(image, version, before); err != nil {
		t.Fatalf("%v", err)
	}
	g := &generation{slot: s, agent: s.Agent()}
	name, err := control.SocketName(strconv.Itoa(g.agent.PID()))
	if err != nil {
		t.Fatalf("find the agent's control socket: %v", err)
	}
	g.client = &http.Client{Timeout: lab.Deadline, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Pod.Dial(ctx, "unix", name) },
	}}
	t.Cleanup(g.client.CloseIdleConnections)
	return g
}

// get asks the generation itself.
func (g *generation) get(path string) (body []byte, err error) {
	resp, err := g.client.Get("http://agent" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.200s", path, resp.StatusCode, body)
	}
	return body, err
}

// ready: its Envoy is live and its workers accept, all its configuration is in force.
func (g *generation) ready() bool {
	_, err := g.get(control.StatusPrefix + "/healthz/ready")
	return err == nil
}

// awaitReady returns when the agent began, by its own clock, and when it was ready: the same for
// one that starts cold and for one that takes over.
func (g *generation) awaitReady(t lab.T) (began, ready time.Time) {
	g.poll(t, g.ready)
	ready = time.Now()
	return g.status(t).Generations[0].Started, ready
}

// poll is the poll of a start, and gives up when the agent has ended, or takes too long.
func (g *generation) poll(t lab.T, condition func() bool) {
	deadline := time.After(4 * lab.Deadline) // 10,000 ServiceEntries on a busy machine
	poll(t, func() bool {
		select {
		case <-g.agent.Done():
			t.Fatalf("%s ended: %s", g.slot.Name, lastLines(g.slot.Log.String()))
		case <-deadline:
			t.Fatalf("%s does not come so far: %s", g.slot.Name, lastLines(g.slot.Log.String()))
		default:
		}
		return condition()
	})
}

func (g *generation) status(t lab.T) (u contract.UpgradeStatus) {
	body, err := g.get(control.UpgradePath)
	if err == nil {
		err = json.Unmarshal(body, &u)
	}
	if err != nil || len(u.Generations) == 0 {
		t.Fatalf("ask %s for its status: %v: %s", g.slot.Name, err, body)
	}
	return u
}

// awaitRole waits until the generation has the role for good.
func (g *generation) awaitRole(t lab.T, role string) {
	g.poll(t, func() bool {
		var s control.RoleStatus
		body, err := g.get(control.RolePath)
		return err == nil && json.Unmarshal(body, &s) == nil && s.Role == role && s.Settled
	})
}

// clear ends every generation and forgets whatever one left, so that the next one starts cold.
func (p *slotPod) clear(t lab.T) {
	for _, s := range p.slots.List {
		s.Kill()
	}
	waitGone(t, p.Lab)
	clearVolumes(t, p.slots)
	p.version = 0
}

// clearVolumes forgets whatever an agent has left, so that the next one starts cold.
func clearVolumes(t lab.T, s *lab.Slots) {
	for _, v := range lab.Volumes() {
		dir := s.VolumePath(v.Name, 0)
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			err = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
		if err != nil {
			t.Fatalf("clear volume %s: %v", v.Name, err)
		}
	}
}

// pss is the proportional memory of every process of the pod, in MiB.
func (p *slotPod) pss(t lab.T) (total float64) {
	for _, line := range p.Processes() {
		var pid int
		if _, err := fmt.Sscan(line, &pid); err != nil {
			t.Fatalf("read the pid of %q: %v", line, err)
		}
		total += pssOf(t, pid)
	}
	return total
}
