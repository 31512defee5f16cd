package dnsproxy

import (
	"context"
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/dnsproxy/table"
)

// Explanation says what the server answers to a question, and why.
type Explanation struct {
	Name string `json:"name"`
	Type string `json:"type"`

	// Source is what decided: vip, table, wildcard or search (a name of the
	// mesh or of this host, the first of these that is true of it), cache, stale, upstream,
	// or failure. A mesh name's types that the table does not have come from
	// cache or upstream.
	Source string `json:"source"`

	Host     string `json:"host,omitempty"`     // the table's name that matched
	Search   string `json:"search,omitempty"`   // the search domain, where it was cut off
	Wildcard bool   `json:"wildcard,omitempty"` // Host is a wildcard
	VIP      bool   `json:"vip,omitempty"`      // Host's addresses are virtual

	Rcode   string   `json:"rcode"`
	Records []string `json:"records"` // the answer section, as in a zone file

	Server       string  `json:"server,omitempty"`       // upstream that said so
	RTTSeconds   float64 `json:"rttSeconds,omitempty"`   // upstream
	AgeSeconds   float64 `json:"ageSeconds,omitempty"`   // cache and stale
	RemainingTTL uint32  `json:"remainingTTL,omitempty"` // cache: seconds, the least of the records
}

// Explain asks as a TCP client would, and returns the answer with its reason.
// Its question is not counted in Stats, but what an upstream says to it is
// cached. Errors: name is no DNS name.
func (s *Server) Explain(ctx context.Context, name string, qtype uint16) (Explanation, error) {
	q, err := wire.NewQuery(name, qtype)
	if err != nil {
		return Explanation{}, err
	}
	own := chain{server: s, first: s.tables}
	ctx, cancel := context.WithCancel(ctx)
	own.flights.Transport.Open(ctx, false)
	own.flights.ExplainOnly = true
	defer own.flights.Transport.End()
	defer cancel()
	a, f, ok := own.fast(q, nil)
	if !ok {
		a = own.first.Serve(ctx, q, f, &own.flights)
	}
	e := Explanation{
		Name: dns.Fqdn(name), Type: dns.Type(qtype).String(), Source: a.Source.String(), Records: []string{},
		RTTSeconds: a.RTT.Seconds(), AgeSeconds: a.Age.Seconds(),
	}
	if a.Server.IsValid() {
		e.Server = a.Server.String()
	}
	if m, ok := s.localhost.Find(q); ok {
		e.match(m, q, a.Source)
	} else if t := s.Table(); t != nil {
		if m, ok := t.Find(q); ok {
			e.match(m, q, a.Source)
		}
	}
	return e, e.read(a)
}

// match adds how the name was found.
func (e *Explanation) match(m table.Match, q *wire.Query, source wire.Source) {
	e.Host, e.Search, e.Wildcard, e.VIP = m.Host(), m.Domain(q), m.Wildcard, m.Vip()
	if source != wire.SourceTable {
		return
	}
	switch {
	case e.VIP:
		e.Source = "vip"
	case e.Wildcard:
		e.Source = "wildcard"
	case e.Search != "":
		e.Source = "search"
	}
}

// read adds what the message says.
func (e *Explanation) read(a wire.Answer) error {
	var m dns.Msg
	if err := m.Unpack(a.Msg); err != nil {
		return fmt.Errorf("look up %q: read the answer: %w", e.Name, err)
	}
	e.Rcode = dns.RcodeToString[m.Rcode]
	for _, rr := range m.Answer {
		e.Records = append(e.Records, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	if a.Source == wire.SourceCache {
		e.RemainingTTL = leastTTL(&m)
	}
	return nil
}

// ParseType returns the number of a query type's name (A, aaaa, TYPE65).
func ParseType(name string) (uint16, error) {
	name = strings.ToUpper(name)
	if t, ok := dns.StringToType[name]; ok {
		return t, nil
	}
	var n uint16
	if _, err := fmt.Sscanf(name, "TYPE%d", &n); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("query type %q is unknown; use A, AAAA, PTR, SRV, TXT, HTTPS or TYPE<number> (RFC 3597)", name)
}
