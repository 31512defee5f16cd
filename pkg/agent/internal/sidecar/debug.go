package sidecar

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"understudy.mesh/dnsproxy"
	"understudy.mesh/dnsproxy/cache"
	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/dnsproxy/upstream"
	"understudy.mesh/dnsproxy/vip"
	"understudy.mesh/pkg/config"
	"understudy.mesh/pkg/control"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
)

// noDNS says why a DNS page has nothing to show.
const noDNS = "DNS capture is off: set ISTIO_META_DNS_CAPTURE=true"

// debugNames is a further debug page of the status port, where Istio's agent shows its name table.
const debugNames = "/debug/ndsz"

// debugPages are those of the status port, by path.
func (n *names) debugPages() map[string]http.Handler {
	return map[string]http.Handler{
		control.DNSLookupPath:    n.ofDNS(n.dnsLookup),
		control.DNSTablePath:     n.ofDNS(n.dnsTable),
		control.DNSCachePath:     n.ofDNS(n.dnsCache),
		control.DNSFlushPath:     n.ofDNS(n.dnsFlush),
		control.DNSVIPsPath:      n.ofDNS(n.dnsVIPs),
		control.DNSUpstreamsPath: n.ofDNS(n.dnsUpstreams),
		debugNames:               http.HandlerFunc(n.nameTable),
	}
}

// ofDNS is a page that there is only with DNS capture.
func (n *names) ofDNS(page http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !n.captured {
			http.Error(w, noDNS, http.StatusNotFound)
			return
		}
		page(w, r)
	})
}

// overview is what of it fits on a screen; nil without DNS capture. VIPs come first.
func (n *names) overview(leadsTo func(host string) string) *overview.DNS {
	if !n.captured {
		return nil
	}
	stats, vips, hosts := n.dns.Stats(), n.vips.Stats(), n.hosts()
	o := &overview.DNS{
		Queries: stats.Requests, NamesCount: len(hosts), Names: []overview.Name{},
		VIPsUsed: vips.Assigned, VIPsLacking: vips.Pending, Servers: stats.Upstreams,
	}
	for _, virtual := range []bool{true, false} {
		for _, h := range hosts {
			if h.VIP == virtual && len(o.Names) < overview.MaxNames {
				o.Names = append(o.Names, overview.Name{Host: h.Name, Addresses: h.Addrs, VIP: h.VIP, LeadsTo: leadsTo(h.Name)})
			}
		}
	}
	return o
}

func (n *names) dnsLookup(w http.ResponseWriter, r *http.Request) {
	name, qtype := r.FormValue("name"), r.FormValue("type")
	t, err := dnsproxy.ParseType(cmp.Or(qtype, "A"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	explanation, err := n.dns.Explain(r.Context(), name, t)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	status.WriteJSON(w, explanation)
}

func (n *names) dnsTable(w http.ResponseWriter, r *http.Request) {
	has := named(r.FormValue("name"))
	status.WriteList(w, "", n.hosts(), func(h table.Host) bool { return has(h.Name) })
}

// hosts is what the name table has; before the first one that is nothing.
func (n *names) hosts() []table.Host {
	if t := n.dns.Table(); t != nil {
		return t.Hosts()
	}
	return nil
}

func (n *names) dnsCache(w http.ResponseWriter, r *http.Request) {
	has := named(r.FormValue("name"))
	status.WriteList(w, "", n.dns.Cache.List(), func(e cache.Entry) bool { return has(e.Name) })
}

func (n *names) dnsFlush(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "flush the DNS cache: method "+r.Method+"; use POST", http.StatusMethodNotAllowed)
		return
	}
	status.WriteJSON(w, map[string]int{"flushed": n.dns.Cache.Flush(named(r.FormValue("name")))})
}

func (n *names) dnsVIPs(w http.ResponseWriter, r *http.Request) {
	pool, err := json.Marshal(n.vips.Stats())
	if err != nil { // numbers
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	has := named(r.FormValue("name"))
	status.WriteList(w, fmt.Sprintf("{\n\"pool\": %s,\n\"vips\": ", pool), n.vips.List(), func(v vip.VIP) bool { return has(v.Host) })
	fmt.Fprintln(w, "}")
}

func (n *names) dnsUpstreams(w http.ResponseWriter, _ *http.Request) {
	status.WriteList(w, "", n.dns.Upstreams(), func(upstream.Stats) bool { return true })
}

// nameTable answers as Istio's agent does: each name with its addresses.
func (n *names) nameTable(w http.ResponseWriter, _ *http.Request) {
	type info struct {
		IPs      []string `json:"ips"`
		Registry string   `json:"registry"`
	}
	if !n.captured {
		w.WriteHeader(http.StatusNotFound)
		status.WriteJSON(w, struct{}{})
		return
	}
	table := map[string]info{}
	for _, h := range n.hosts() {
		i := info{Registry: "External"}
		for _, addr := range h.Addrs {
			i.IPs = append(i.IPs, addr.String())
		}
		table[h.Name] = i
	}
	status.WriteJSON(w, map[string]any{"table": table})
}

// named returns what tells the names that have these labels, one behind the other and in
// any case: for a.example that is a.example, www.a.example, *.a.example, and
// a.example.svc.cluster.local, which a search domain made of it. "" is in every name.
func named(labels string) func(name string) bool {
	if labels = strings.Trim(labels, "."); labels == "" {
		return func(string) bool { return true }
	}
	labels = "." + strings.ToLower(labels) + "."
	return func(name string) bool {
		return strings.Contains("."+strings.ToLower(strings.TrimSuffix(name, "."))+".", labels)
	}
}

// Overview is what people see of the sidecar at a glance.
func (s *Sidecar) Overview() *overview.Sidecar {
	ready, pending := s.Ready.Check()
	o := &overview.Sidecar{Ready: ready, Tasks: []overview.Task{}, Capture: capture(s.cfg), Config: s.plane.Overview(), DNS: s.names.overview(s.plane.LeadsTo)}
	for _, p := range pending {
		o.Tasks = append(o.Tasks, overview.Task{Name: p.Task, State: p.State(), Reason: p.Reason})
	}
	for _, name := range s.Ready.Finished() {
		o.Tasks = append(o.Tasks, overview.Task{Name: name, State: "done"})
	}
	if s.identity != nil {
		o.Certificate = s.identity.Overview()
	}
	return o
}

// capture says what the settings say of it. The agent has no right to see the rules.
func capture(c *config.Config) string {
	if c.Interception == config.NoCapture || c.Role != config.Sidecar {
		return "Nothing is captured: Envoy takes what comes to its own ports."
	}
	text := fmt.Sprintf("Captured by %s: TCP that leaves the pod -> Envoy, port %d; TCP that comes in -> Envoy, port %d", c.Interception, outboundPort, inboundPort)
	if c.DNSCapture {
		text += fmt.Sprintf("; DNS queries -> the agent, port %d", dnsPort(c))
	}
	return text + ". So say the settings; pilot-agent doctor capture looks at the rules, as root."
}
