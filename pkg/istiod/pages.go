package istiod

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/overview"
	"understudy.mesh/pkg/status"
	"understudy.mesh/pkg/xds"
)

const (
	// debugPage shows the stream to istiod, and what Envoy says of each type of resources.
	debugPage = "/debug/istiod"
	// ConfigLogPage is what istiod has changed of Envoy's configuration, oldest first, as a list of [xds.Change] in JSON; with
	// ?name=N only of resources whose names contain N.
	ConfigLogPage = "/debug/config_log"
	// resyncPage is a POST that has everything fetched anew.
	resyncPage = "/debug/resync"
)

// DebugPages are pages of the status port, for loopback only.
func (i *Istiod) DebugPages() map[string]http.Handler {
	pages := i.c.Modules.Pages()
	pages[debugPage], pages[ConfigLogPage], pages[resyncPage] = http.HandlerFunc(i.statusPage), http.HandlerFunc(i.configLog), http.HandlerFunc(i.fetchAnew)
	return pages
}

func (i *Istiod) statusPage(w http.ResponseWriter, _ *http.Request) {
	status.WriteJSON(w, struct {
		shown
		// Application is how the application is, as istiod was told.
		Application string  `json:"application,omitempty"`
		Clients     clients `json:"clients"`
		// Lacking is how many resources need each of the extensions that Envoy lacks.
		Lacking map[string]int        `json:"lackingExtensions,omitempty"`
		Types   map[string]xds.Status `json:"types"`
	}{i.now(), i.health.String(), i.c.Clients.clients(), i.lacking.counts(), i.c.Relay.Status()})
}

// Overview is what of it fits on a screen.
func (i *Istiod) Overview() overview.Config {
	now := i.now()
	o := overview.Config{Istiod: &overview.Stream{Address: now.Address, Connected: now.Connected, Since: now.Since, LastError: now.LastError}}
	if now.Refused != "" {
		o.Add("a response of istiod", now.Refused)
	}
	types := i.c.Relay.Status()
	for _, url := range slices.Sorted(maps.Keys(types)) {
		for _, name := range slices.Sorted(maps.Keys(types[url].Refused)) {
			o.Add(url[strings.LastIndexByte(url, '.')+1:]+" "+name, types[url].Refused[name])
		}
	}
	ecds.NotInForce(i.c.Modules.Report(), o.Add)
	return o
}

// shownPorts is how many ports of a host LeadsTo shows: it is a line.
const shownPorts = 3

// LeadsTo says by which of Envoy's clusters connections to a host go, port by port, as istiod calls them: outbound|PORT||HOST. What these lead to
// only Envoy knows. It is "" for a host without one, such as a single pod's name.
func (i *Istiod) LeadsTo(host string) string {
	pod := i.c.Pod
	// A short form is answered as well: the host's own name goes first.
	hosts := []string{host, host + "." + pod.Domain, host + "." + pod.Namespace + "." + pod.Domain, host + "." + strings.TrimPrefix(pod.Domain, "svc.")}
	ports := make([][]int, len(hosts))
	i.c.Relay.EachName(clusterType, func(name string) {
		rest, outbound := strings.CutPrefix(name, "outbound|")
		text, of, whole := strings.Cut(rest, "||") // a subset's name is between them
		port, err := strconv.Atoi(text)
		if at := slices.Index(hosts, of); outbound && whole && err == nil && at >= 0 {
			ports[at] = append(ports[at], port)
		}
	})
	at := slices.IndexFunc(ports, func(p []int) bool { return len(p) > 0 })
	if at < 0 {
		return ""
	}
	slices.Sort(ports[at])
	var all []string
	for n, port := range ports[at] {
		if n == shownPorts {
			all = append(all, fmt.Sprintf("%d more ports", len(ports[at])-n))
			break
		}
		all = append(all, fmt.Sprintf("%d -> outbound|%d||%s", port, port, hosts[at]))
	}
	return strings.Join(all, "; ")
}

// configLog writes a change on each line.
func (i *Istiod) configLog(w http.ResponseWriter, r *http.Request) {
	name := r.FormValue("name")
	status.WriteList(w, "", i.c.Relay.Changes(), func(c xds.Change) bool { return strings.Contains(c.Name, name) })
}

// fetchAnew asks for another stream. It does not wait for what that brings.
func (i *Istiod) fetchAnew(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "fetch everything anew from istiod: method "+r.Method+"; use POST", http.StatusMethodNotAllowed)
		return
	}
	select {
	case i.resync <- struct{}{}:
	default: // it is asked for already
	}
	w.Write([]byte("OK\n"))
}
