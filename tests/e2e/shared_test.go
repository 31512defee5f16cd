package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"understudy.mesh/tests/lab"
)

// sharing is what the listener of port 80 has to tell apart: two HTTP hosts, a TCP host, an address that a document gives, and
// a wildcard that is known by Host alone.
var sharing = documents(
	static("a", "a.example", 80, "HTTP", "198.51.100.12", 8001), static("b", "b.example", 80, "HTTP", "198.51.100.12", 8002),
	static("tcp", "tcp.example", 80, "TCP", "198.51.100.12", 8003), static("other", "other.example", 3306, "TCP", "198.51.100.12", 8003),
	static("listed", "listed.example", 80, "HTTP", "198.51.100.12", 8004)+"  addresses: [198.51.100.70]\n",
)

const wildcard = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wildcard}
spec:
  hosts: ["*.wild.example"]
  ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]
  resolution: DYNAMIC_DNS
`

// TestSharedListener is what must hold whatever the shape of the listeners, and what Envoy has of each shape.
func TestSharedListener(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, files string
		env         []string
		shared      bool
	}{
		{"shared", sharing, nil, true},
		{"each", sharing, []string{"UNDERSTUDY_LISTENERS=each"}, false},
		{"beside hosts without an address", documents(sharing, wildcard), nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": tc.files}, agent: lab.AgentOptions{Env: tc.env}})
			serveSharing(t, p)
			vips := map[string]string{}
			for _, host := range []string{"a.example", "b.example"} {
				vips[host] = netip.AddrPortFrom(p.vip(t, host, dns.TypeA), 80).String()
			}
			_, listeners, err := p.Pod.Get("http://127.0.0.1:15000/listeners")
			must(t, err)
			own := strings.Contains(listeners, strings.Replace(vips["a.example"], ":", "_", 1)+"::")
			if common := strings.Contains(listeners, "0.0.0.0_80::"); own == tc.shared || common != (tc.shared || strings.Contains(tc.files, "wild")) {
				t.Errorf("a listener of its own: %t, one of the port: %t", own, common)
			}
			checkSharing(t, p, vips)
		})
	}
}

func serveSharing(t *testing.T, p *pod) {
	t.Helper()
	for port, name := range map[string]string{"8001": "a", "8002": "b", "8004": "listed", "8005": "c"} {
		lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.12:"+port), name)
	}
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.12:8003"), lab.Banner("I am TCP"))
	lab.ServeHTTP(t, p.Out.Listen(t, "198.51.100.40:80"), "plain")
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.40:81"), lab.RawHTTP)
}

// checkSharing sends to the address of each host what is meant for another.
func checkSharing(t *testing.T, p *pod, vips map[string]string) {
	t.Helper()
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		for _, name := range []string{"a", "b"} {
			addr := netip.AddrPortFrom(p.vip(t, name+".example", qtype), 80).String()
			for _, host := range []string{"a.example", "b.example", "x.wild.example"} {
				if got := get(t, dial(t, p.Pod, addr), host); got["server"] != name || got["host"] != host {
					t.Errorf("%s with Host %s: %v", addr, host, got)
				}
			}
		}
	}
	other, _, _ := net.SplitHostPort(vips["b.example"])
	c := dial(t, p.Pod, vips["a.example"])
	send(t, c, "GET / HTTP/1.1\r\nHost: b.example\r\nx-understudy-destination: "+other+"\r\nX-Understudy-Destination: "+other+"\r\nConnection: close\r\n\r\n")
	if answer, err := io.ReadAll(c); err != nil || contains(string(answer), "server=a\n") != nil {
		t.Errorf("with another's address in the header: %q, %v", answer, err)
	}
	if got := get(t, dial(t, p.Pod, "198.51.100.70:80"), "a.example"); got["server"] != "listed" {
		t.Errorf("to an address that a document gives: %v", got)
	}
	expect(t, p.dialHost(t, "tcp.example", 80), "I am TCP\r\n")
	mustRefuse(t, p.Pod, netip.AddrPortFrom(p.vip(t, "other.example", dns.TypeA), 80).String())
	mustRefuse(t, p.Pod, netip.AddrPortFrom(p.vip(t, "other.example", dns.TypeAAAA), 80).String())
	mustRefuse(t, p.Pod, "240.240.255.250:80")
	if got := get(t, dial(t, p.Pod, "198.51.100.40:80"), "a.example"); got["server"] != "plain" {
		t.Errorf("to an unknown address: %v", got)
	}
}

// TestSharedHeader: the server sees nothing of how its route was chosen.
func TestSharedHeader(t *testing.T) {
	t.Parallel()
	p := newPod(t, podOptions{files: map[string]string{"mesh.yaml": static("raw", "raw.example", 80, "HTTP", "198.51.100.40", 8081)}})
	lab.ServeTCP(p.Out.Listen(t, "198.51.100.40:8081"), lab.RawHTTP)
	c := p.dialHost(t, "raw.example", 80)
	send(t, c, "GET / HTTP/1.1\r\nHost: raw.example\r\nConnection: close\r\n\r\n")
	answer, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(answer), "GET / HTTP/1.1") || strings.Contains(strings.ToLower(string(answer)), "understudy") {
		t.Errorf("the server saw %q, %v", answer, err)
	}
}

// TestSharedNeighbours changes the hosts of a shared listener in every way, while a neighbour's connections live. There are
// so many that their routes are in several parts.
func TestSharedNeighbours(t *testing.T) {
	t.Parallel()
	const fillers = 600
	others := make([]string, fillers)
	for i := range others {
		others[i] = static(fmt.Sprintf("other-%d", i), fmt.Sprintf("other-%d.example", i), 80, "HTTP", "198.51.100.12", 8004)
	}
	p := newPod(t, podOptions{files: map[string]string{
		"others.yaml": documents(others...),
		"a.yaml":      static("a", "a.example", 80, "HTTP", "198.51.100.12", 8001), "b.yaml": static("b", "b.example", 80, "HTTP", "198.51.100.12", 8002),
	}})
	serveSharing(t, p)
	kept := p.dialHost(t, "a.example", 80)
	replies := bufio.NewReader(kept)
	ask := func(when string) {
		t.Helper()
		send(t, kept, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
		resp, err := http.ReadResponse(replies, nil)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.Close || fields(string(body))["server"] != "a" {
			t.Errorf("%s: %v, close %t: %q", when, err, resp.Close, body)
		}
	}
	ask("before")
	for i := 0; i < fillers; i += fillers / 20 {
		host := fmt.Sprintf("other-%d.example", i)
		if got := get(t, p.dialHost(t, host, 80), host); got["server"] != "listed" {
			t.Errorf("%s: %v", host, got)
		}
	}
	gone := p.vip(t, "b.example", dns.TypeA)
	p.c.Write(t, "c.yaml", static("c", "c.example", 80, "HTTP", "198.51.100.12", 8005))
	eventually(t, "a host comes", func() error {
		if addrs, err := p.Pod.Lookup("c.example", dns.TypeA); err != nil || len(addrs) != 1 {
			return fmt.Errorf("%v, %v", addrs, err)
		}
		return nil
	})
	if got := get(t, p.dialHost(t, "c.example", 80), "c.example"); got["server"] != "c" {
		t.Errorf("the host that came, as soon as it has a name: %v", got)
	}
	ask("a host came")
	p.c.Write(t, "c.yaml", static("c", "c.example", 80, "HTTP", "198.51.100.12", 8002))
	eventually(t, "an endpoint changes", func() error {
		if got := get(t, p.dialHost(t, "c.example", 80), "c.example"); got["server"] != "b" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	ask("an endpoint changed")
	p.c.Remove(t, "b.yaml")
	eventually(t, "a host goes", func() error {
		if addrs, err := p.Pod.Lookup("b.example", dns.TypeA); err == nil && len(addrs) > 0 {
			return fmt.Errorf("%v", addrs)
		}
		return nil
	})
	if got := get(t, dial(t, p.Pod, netip.AddrPortFrom(gone, 80).String()), "b.example"); got["server"] != "b" {
		t.Errorf("a host that went, within the TTL of its last answer: %v", got)
	}
	ask("a host went")
	stats := envoyStats(t, p, "^listener_manager.(listener_in_place_updated|total_filter_chains_draining|total_listeners_draining)$")
	if stats["listener_manager.listener_in_place_updated"] < 1 || stats["listener_manager.total_filter_chains_draining"]+stats["listener_manager.total_listeners_draining"] != 0 {
		t.Errorf("Envoy drained something: %v", stats)
	}
}
