// Package hosts is what DNS answers, as one generation tells it to another, and to itself on disk.
package hosts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	"understudy.mesh/dnsproxy/table"
)

// named is a host as a successor is told of it.
type named struct {
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs,omitempty"`
	VIP       bool         `json:"vip,omitempty"`
	Forwarded bool         `json:"forwarded,omitempty"`
}

// Marshal is a list of hosts in JSON. There are ten thousand of them, which the encoder of the standard library is slow for.
func Marshal(hosts []table.Host) []byte {
	b := append(make([]byte, 0, 2+96*len(hosts)), '[')
	for k, h := range hosts {
		if k > 0 {
			b = append(b, ',')
		}
		b = appendString(append(b, `{"name":`...), h.Name)
		for i, addr := range h.Addrs {
			text, _ := addr.MarshalText() // it cannot fail; "" is of none, as String is not
			b = appendString(append(b, [...]string{`,"addrs":[`, `,`}[min(i, 1)]...), string(text))
		}
		if len(h.Addrs) > 0 {
			b = append(b, ']')
		}
		if h.VIP {
			b = append(b, `,"vip":true`...)
		}
		if h.Forwarded {
			b = append(b, `,"forwarded":true`...)
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

// appendString appends a string in JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil {
				return append(b, `""`...) // it cannot fail
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// Unmarshal reads what Marshal wrote, here or in another release. A host without a name, one that comes twice, and one without an
// address that is not forwarded are errors.
func Unmarshal(b []byte) ([]table.Host, error) {
	var list []named
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("read the names of the generation before: %w", err)
	}
	seen := make(map[string]bool, len(list))
	hosts := make([]table.Host, len(list))
	for k, h := range list {
		if h.Name == "" || seen[h.Name] || (len(h.Addrs) == 0) != h.Forwarded {
			return nil, fmt.Errorf("read the names of the generation before: host %q: %w", h.Name, errHost)
		}
		seen[h.Name] = true
		hosts[k] = table.Host(h)
	}
	return hosts, nil
}

// errHost says that a host is not what it ought to be.
var errHost = errors.New("without a name, twice, or without an address and not forwarded")
