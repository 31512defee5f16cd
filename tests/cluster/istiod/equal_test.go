package istiod_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.mesh/pkg/overview"
	"understudy.mesh/tests/cluster/istiod"
	"understudy.mesh/tests/lab"
)

// startLimit is how long a start may take with ten thousand hosts, of which Envoy alone takes most.
const startLimit = 3 * time.Minute

// TestEqualsIstios: what istiod gives an Envoy behind our agent is to the byte of JSON what it gives one behind Istio's: clusters,
// listeners, routes and endpoints.
func TestEqualsIstios(t *testing.T) {
	for _, hosts := range []int{1, 1000} {
		t.Run(fmt.Sprint(hosts), func(t *testing.T) { mustEqualIstios(t, hosts) })
	}
}

func TestLongEqualsIstios(t *testing.T) {
	if !*long {
		t.Skip("minutes: -long")
	}
	mustEqualIstios(t, 10_000)
}

func mustEqualIstios(t *testing.T, hosts int) {
	p := newPod(t, 1, map[string]string{"hosts": istiod.Hosts(hosts)})
	start(t, p, 0, p.Istios)
	want := dynamic(t, p, hosts)
	p.Slots.List[0].Kill()
	start(t, p, 0, p.Ours)
	var different []string
	lab.Eventually(t, startLimit, "both Envoys have the same", func() error {
		got := dynamic(t, p, hosts)
		different = nil
		for _, name := range slices.Sorted(maps.Keys(merged(got, want))) {
			if got[name] != want[name] {
				different = append(different, name)
			}
		}
		if len(different) == 0 {
			return nil
		}
		name := different[0]
		return fmt.Errorf("%d of %d are different: %.1000q: ours %.2000s, Istio's %.2000s", len(different), len(want), different, got[name], want[name])
	})
	t.Logf("%d resources are the same", len(want))
}

// TestNamesLead: the page of the agent says by which of Envoy's clusters a name goes, as istiod calls it.
func TestNamesLead(t *testing.T) {
	p := newPod(t, 1, map[string]string{"hosts": istiod.Hosts(1)})
	start(t, p, 0, p.Ours)
	status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.StatusPort + overview.Path)
	var o overview.Overview
	if err == nil {
		err = json.Unmarshal([]byte(body), &o)
	}
	if err != nil || status != http.StatusOK || o.Sidecar == nil || o.Sidecar.DNS == nil {
		t.Fatalf("%d, %v: %s", status, err, body)
	}
	led := 0
	for _, n := range o.Sidecar.DNS.Names {
		if strings.HasSuffix(n.LeadsTo, "||"+n.Host) {
			led++
		}
	}
	if led == 0 {
		t.Errorf("no name leads anywhere: %+v", o.Sidecar.DNS.Names)
	}
	t.Logf("%+v", o.Sidecar.DNS.Names)
}

func merged(a, b map[string]string) map[string]string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// start runs an image in a slot until its proxy is ready.
func start(t *testing.T, p *istiod.Pod, slot int, image lab.Image, env ...string) {
	t.Helper()
	if err := p.Slots.List[slot].Start(image, env...); err != nil {
		t.Fatal(err)
	}
	p.Slots.List[slot].Agent().WaitReadyWithin(t, startLimit)
}

// dump is what of Envoy's /config_dump came from a control plane.
type dump struct {
	Configs []struct {
		Clusters []struct {
			Resource named `json:"cluster"`
		} `json:"dynamic_active_clusters"`
		Listeners []struct {
			State struct {
				Resource named `json:"listener"`
			} `json:"active_state"`
		} `json:"dynamic_listeners"`
		Routes []struct {
			Resource named `json:"route_config"`
		} `json:"dynamic_route_configs"`
		Endpoints []struct {
			Resource named `json:"endpoint_config"`
		} `json:"dynamic_endpoint_configs"`
	}
}

// named is a resource as JSON with its keys in order, by its name.
type named struct{ name, text string }

func (n *named) UnmarshalJSON(b []byte) error {
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	n.name = fmt.Sprint(fields["name"])
	if name, is := fields["cluster_name"]; is {
		n.name = fmt.Sprint(name)
	}
	text, err := json.Marshal(fields)
	n.text = string(text)
	return err
}

// dynamic is what the pod's Envoy has of a control plane, by kind and name, once each of so many hosts has its endpoints.
func dynamic(t *testing.T, p *istiod.Pod, hosts int) (resources map[string]string) {
	t.Helper()
	lab.Eventually(t, startLimit, "Envoy has all hosts", func() error {
		status, body, err := p.Pod.Get("http://127.0.0.1:" + lab.AdminPort + "/config_dump?include_eds")
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("status %d, %w", status, err)
		}
		var d dump
		if err := json.Unmarshal([]byte(body), &d); err != nil {
			return err
		}
		resources = make(map[string]string)
		endpoints := 0
		for _, c := range d.Configs {
			for _, r := range c.Clusters {
				resources["cluster "+r.Resource.name] = r.Resource.text
			}
			for _, r := range c.Listeners {
				resources["listener "+r.State.Resource.name] = r.State.Resource.text
			}
			for _, r := range c.Routes {
				resources["route "+r.Resource.name] = r.Resource.text
			}
			for _, r := range c.Endpoints {
				resources["endpoints "+r.Resource.name] = r.Resource.text
				endpoints++
			}
		}
		if endpoints < hosts {
			return fmt.Errorf("%d resources, with endpoints of %d of %d", len(resources), endpoints, hosts)
		}
		return nil
	})
	return resources
}
