package mesh

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// What LeadsTo shows of a host is a line: so many ports, and endpoints of each.
const (
	shownPorts     = 3
	shownEndpoints = 2
)

// LeadsTo says for people where connections to a host go, port by port; "" for a host that is not in the registry.
func (r *Registry) LeadsTo(host string) string {
	i, found := slices.BinarySearchFunc(r.services, host, func(s *Service, host string) int { return strings.Compare(s.Host, host) })
	if !found {
		return ""
	}
	s := r.services[i]
	var ports []string
	for i, p := range s.Ports {
		if i == shownPorts {
			ports = append(ports, fmt.Sprintf("%d more ports", len(s.Ports)-i))
			break
		}
		ports = append(ports, fmt.Sprintf("%d -> %s", p.Number, p.leadsTo(s.Host)))
	}
	return strings.Join(ports, "; ")
}

func (p *ServicePort) leadsTo(host string) string {
	switch {
	case p.Resolution == ResolveNone:
		return "the address that it is for (NONE)"
	case p.Resolution == ResolveDynamic:
		return "the name that the request has (DYNAMIC_DNS)"
	case len(p.Endpoints) == 0 && p.Resolution.byName():
		return fmt.Sprintf("%s (%s)", net.JoinHostPort(host, strconv.Itoa(int(p.target))), p.Resolution)
	case len(p.Endpoints) == 0:
		return "no endpoint"
	}
	var to []string
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if i == shownEndpoints {
			to = append(to, fmt.Sprintf("%d more", len(p.Endpoints)-i))
			break
		}
		if e.isUnix() {
			to = append(to, e.Address)
		} else {
			to = append(to, net.JoinHostPort(e.Address, strconv.Itoa(int(e.On(p.Port)))))
		}
	}
	return fmt.Sprintf("%s (%s)", strings.Join(to, ", "), p.Resolution)
}
