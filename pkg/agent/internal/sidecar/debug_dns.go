package sidecar

import (
	"bufio"
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
)

// noDNS says why a DNS page has nothing to show.
const noDNS = "DNS capture is off: set ISTIO_META_DNS_CAPTURE=true"

// ofDNS is a page that there is only with a DNS proxy.
func (s *Sidecar) ofDNS(page http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.dns == nil {
			http.Error(w, noDNS, http.StatusNotFound)
			return
		}
		page(w, r)
	})
}

func (s *Sidecar) dnsLookup(w http.ResponseWriter, r *http.Request) {
	name, qtype := r.FormValue("name"), r.FormValue("type")
	t, err := dnsproxy.ParseType(cmp.Or(qtype, "A"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	explanation, err := s.dns.Explain(r.Context(), name, t)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	WriteJSON(w, explanation)
}

func (s *Sidecar) dnsTable(w http.ResponseWriter, r *http.Request) {
	has := named(r.FormValue("name"))
	writeList(w, "", s.hosts(), func(h table.Host) bool { return has(h.Name) })
}

// hosts is what the name table has; before the first one that is nothing.
func (s *Sidecar) hosts() []table.Host {
	if t := s.dns.Table(); t != nil {
		return t.Hosts()
	}
	return nil
}

func (s *Sidecar) dnsCache(w http.ResponseWriter, r *http.Request) {
	has := named(r.FormValue("name"))
	writeList(w, "", s.dns.Cache.List(), func(e cache.Entry) bool { return has(e.Name) })
}

func (s *Sidecar) dnsFlush(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "flush the DNS cache: method "+r.Method+"; use POST", http.StatusMethodNotAllowed)
		return
	}
	WriteJSON(w, map[string]int{"flushed": s.dns.Cache.Flush(named(r.FormValue("name")))})
}

func (s *Sidecar) dnsVIPs(w http.ResponseWriter, r *http.Request) {
	pool, err := json.Marshal(s.vips.Stats())
	if err != nil { // numbers
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	has := named(r.FormValue("name"))
	writeList(w, fmt.Sprintf("{\n\"pool\": %s,\n\"vips\": ", pool), s.vips.List(), func(v vip.VIP) bool { return has(v.Host) })
	fmt.Fprintln(w, "}")
}

func (s *Sidecar) dnsUpstreams(w http.ResponseWriter, _ *http.Request) {
	writeList(w, "", s.dns.Upstreams(), func(upstream.Stats) bool { return true })
}

// nameTable answers as Istio's agent does: each name with its addresses.
func (s *Sidecar) nameTable(w http.ResponseWriter, _ *http.Request) {
	type info struct {
		IPs      []string `json:"ips"`
		Registry string   `json:"registry"`
	}
	if s.dns == nil {
		w.WriteHeader(http.StatusNotFound)
		WriteJSON(w, struct{}{})
		return
	}
	table := map[string]info{}
	for _, h := range s.hosts() {
		i := info{Registry: "External"}
		for _, addr := range h.Addrs {
			i.IPs = append(i.IPs, addr.String())
		}
		table[h.Name] = i
	}
	WriteJSON(w, map[string]any{"table": table})
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

// writeList writes what is wanted of a list as a JSON array, behind head. It holds the
// text of one element at a time, on a line of its own: a table may have 100,000 names.
func writeList[T any](w http.ResponseWriter, head string, list []T, wanted func(T) bool) {
	w.Header().Set("Content-Type", "application/json")
	out := bufio.NewWriter(w)
	defer out.Flush()
	out.WriteString(head + "[")
	separator := "\n"
	for _, v := range list {
		if !wanted(v) {
			continue
		}
		text, err := json.Marshal(v)
		if err != nil {
			panic(http.ErrAbortHandler) // the client sees that the list has no end
		}
		out.WriteString(separator)
		if _, err := out.Write(text); err != nil {
			return // the client is gone
		}
		separator = ",\n"
	}
	out.WriteString("\n]\n")
}

// WriteJSON answers with v, indented for people.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v)
}
