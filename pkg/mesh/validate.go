package mesh

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"understudy.mesh/internal/unixsock"
	"understudy.mesh/pkg/mesh/internal/document"
)

// The rules below are those of Istio's validation of ServiceEntry and WorkloadEntry (pkg/config/validation), so that
// what istiod takes is taken here and the other way round; what it warns of is a remark here. Each error names the field
// and what would be right.

// newEntry makes the compact form of a ServiceEntry, or says which field is wrong.
func (d *decoder) newEntry(m *networking.ServiceEntry) (*entry, *document.Error) {
	e := &entry{resolution: Resolution(m.Resolution), exportTo: m.ExportTo}
	if e.resolution > ResolveDynamic {
		return nil, document.Errorf("spec.resolution", "is %s, which is unknown here", e.resolution)
	}
	for _, step := range []func(*networking.ServiceEntry) *document.Error{e.setHosts, e.setAddresses} {
		if ferr := step(m); ferr != nil {
			return nil, ferr
		}
	}
	var ferr *document.Error
	if e.ports, ferr = d.newPorts(m.Ports); ferr != nil {
		return nil, ferr
	}
	if m.WorkloadSelector != nil {
		if e.selector, ferr = d.newLabels(m.WorkloadSelector.Labels, "spec.workloadSelector.labels"); ferr != nil {
			return nil, ferr
		}
	}
	if ferr := e.checkResolution(m); ferr != nil {
		return nil, ferr
	}
	if ferr := d.setEndpoints(e, m); ferr != nil {
		return nil, ferr
	}
	d.remarkOn(e)
	return e, e.checkExportTo()
}

// setDynamic leaves of an entry of resolution DYNAMIC_DNS what can have an effect.
func (d *decoder) setDynamic(e *entry, m *networking.ServiceEntry) *document.Error {
	for i, h := range e.hosts {
		if !isWildcard(h) {
			return document.Errorf(indexed("spec.hosts", i), "is %q, resolution DYNAMIC_DNS is for wildcards such as *.example.com; say resolution DNS", h)
		}
	}
	if len(m.Endpoints) > 0 {
		d.remark("spec.endpoints", "has no effect with resolution DYNAMIC_DNS, which looks up the name that Host or SNI says; remove it, or say resolution DNS")
	}
	if e.selector != nil {
		d.remark("spec.workloadSelector", "has no effect with resolution DYNAMIC_DNS, which looks up the name that Host or SNI says; remove it, or say resolution STATIC or DNS")
		e.selector = nil
	}
	e.ports = slices.DeleteFunc(e.ports, func(p Port) bool {
		if !p.Protocol.namesHost() && p.Protocol != ProtoUDP {
			d.remark("spec.ports["+p.name+"]", "is %s, which names no host that resolution DYNAMIC_DNS could look up: the port is left out; say protocol TLS, HTTPS or HTTP, or resolution NONE", p.Protocol)
			return true
		}
		if p.target != p.Number {
			d.remark("spec.ports["+p.name+"].targetPort", "has no effect with resolution DYNAMIC_DNS, which connects to port %d", p.Number)
		}
		return false
	})
	return nil
}

// setEndpoints takes over the endpoints that can be reached.
func (d *decoder) setEndpoints(e *entry, m *networking.ServiceEntry) *document.Error {
	if e.resolution == ResolveDynamic {
		return d.setDynamic(e, m)
	}
	e.itself = e.resolution.byName() && len(m.Endpoints) == 0 && e.selector == nil
	for i, ep := range m.Endpoints {
		path := indexed("spec.endpoints", i)
		one, ferr := d.newEndpoint(ep, path, e.resolution)
		if ferr == nil {
			ferr = e.checkEndpointPorts(one, path)
		}
		if ferr != nil {
			return ferr
		}
		if one.Address == "" {
			d.remark(path+".address", "is missing, and nothing here leads to network %q: the endpoint is left out", document.Abridge(ep.Network))
			continue
		}
		e.endpoints = append(e.endpoints, one)
	}
	return nil
}

// remarkOn says what of a valid entry has no effect, or one that is hardly meant.
func (d *decoder) remarkOn(e *entry) {
	for i, h := range e.hosts {
		if isPartial(h) {
			d.remark(indexed("spec.hosts", i), "is the partial wildcard %q, which is known by the Host of HTTP and by spec.addresses only, not by DNS and not by SNI; name a whole domain, such as *.example.com", h)
		}
	}
	switch {
	case e.resolution == ResolveNone && e.selector != nil:
		d.remark("spec.workloadSelector", "has no effect with resolution NONE; say resolution STATIC or DNS")
		e.selector = nil
	case e.resolution == ResolveStatic && len(e.endpoints) == 0 && e.selector == nil:
		d.remark("spec.endpoints", "has none that can be reached, so that every connection is refused; resolution STATIC needs endpoints or a workloadSelector")
	}
}

func (e *entry) setHosts(m *networking.ServiceEntry) *document.Error {
	if len(m.Hosts) == 0 {
		return document.Errorf("spec.hosts", "is empty, should name at least one host")
	}
	for i, h := range m.Hosts {
		host := canonicalHost(h)
		if reason := checkHost(host, true); reason != "" {
			return document.Errorf(indexed("spec.hosts", i), "is %q, %s", document.Abridge(h), reason)
		}
		if !slices.Contains(e.hosts, host) {
			e.hosts = append(e.hosts, host)
		}
	}
	return nil
}

func (e *entry) setAddresses(m *networking.ServiceEntry) *document.Error {
	for i, a := range m.Addresses {
		path := indexed("spec.addresses", i)
		p, ok := parsePrefix(a)
		switch {
		case !ok:
			return document.Errorf(path, "is %q, should be an IP address or a CIDR such as 10.0.0.0/8", document.Abridge(a))
		case p.IsSingleIP() && p.Addr().IsUnspecified():
			p = netip.Prefix{} // Istio's word for every address
		case !p.IsSingleIP() && e.resolution != ResolveNone && e.resolution != ResolveStatic:
			return document.Errorf(path, "is the CIDR %s, which needs resolution NONE or STATIC, not %s", a, e.resolution)
		}
		if !slices.Contains(e.addresses, p) {
			e.addresses = append(e.addresses, p)
		}
	}
	return nil
}

// parsePrefix reads an address or a CIDR; host bits of a CIDR are cleared, and IPv4-mapped addresses are IPv4.
func parsePrefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	const mapped = 96 // bits before the IPv4 address, RFC 4291 2.5.5.2
	p, err := netip.ParsePrefix(s)
	if err == nil && p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

func (d *decoder) newPorts(in []*networking.ServicePort) ([]Port, *document.Error) {
	out := make([]Port, 0, len(in))
	for i, p := range in {
		path := indexed("spec.ports", i) + "."
		proto, known := parseProtocol(p.Protocol)
		switch {
		case p.Number < 1 || p.Number > 65535:
			return nil, document.Errorf(path+"number", "is %d, should be 1 to 65535", p.Number)
		case p.TargetPort > 65535:
			return nil, document.Errorf(path+"targetPort", "is %d, should be 1 to 65535", p.TargetPort)
		case !known:
			return nil, document.Errorf(path+"protocol", "is %q, should be one of %s", document.Abridge(p.Protocol), protocolNames())
		case !isLabel(strings.ToLower(p.Name)):
			return nil, document.Errorf(path+"name", "is %q, should be 1 to 63 letters, digits and '-'", document.Abridge(p.Name))
		}
		for _, other := range out {
			if other.Number == uint16(p.Number) {
				return nil, document.Errorf(path+"number", "%d is declared twice, as %q and %q", p.Number, other.name, p.Name)
			}
			if other.name == p.Name {
				return nil, document.Errorf(path+"name", "%q is declared twice, on %d and %d", p.Name, other.Number, p.Number)
			}
		}
		target := uint16(cmp.Or(p.TargetPort, p.Number))
		out = append(out, Port{name: d.Intern(p.Name), Number: uint16(p.Number), target: target, Protocol: proto})
	}
	return out, nil
}

func (e *entry) checkEndpointPorts(ep Endpoint, path string) *document.Error {
	if ep.isUnix() && len(e.ports) != 1 {
		return document.Errorf("spec.ports", "has %d ports, a Unix domain socket needs exactly one", len(e.ports))
	}
	for _, o := range ep.ports {
		if !slices.ContainsFunc(e.ports, func(p Port) bool { return p.name == o.name }) {
			return document.Errorf(path+".ports["+o.name+"]", "is no name of spec.ports; name one of them")
		}
	}
	return nil
}

// checkResolution holds the rules that tie resolution, endpoints, selector and hosts together.
func (e *entry) checkResolution(m *networking.ServiceEntry) *document.Error {
	switch {
	case e.selector != nil && len(m.Endpoints) > 0:
		return document.Errorf("spec.workloadSelector", "cannot stand beside endpoints; keep one of the two")
	case e.resolution == ResolveNone && len(m.Endpoints) > 0:
		return document.Errorf("spec.endpoints", "has no meaning with resolution NONE; remove it, or say resolution STATIC or DNS")
	case e.resolution == ResolveDNSRR && len(m.Endpoints) > 1:
		return document.Errorf("spec.endpoints", "has %d endpoints, resolution DNS_ROUND_ROBIN takes one at most; say resolution DNS", len(m.Endpoints))
	}
	if e.resolution.byName() && len(m.Endpoints) == 0 && e.selector == nil {
		if i := slices.IndexFunc(e.hosts, isWildcard); i >= 0 {
			return document.Errorf(indexed("spec.hosts", i), "is the wildcard %q, which resolution %s cannot resolve without endpoints; add endpoints, or say resolution NONE", e.hosts[i], e.resolution)
		}
	}
	return nil
}

func (e *entry) checkExportTo() *document.Error {
	for i, ns := range e.exportTo {
		if ns != "*" && ns != "." && ns != "~" && !isLabel(ns) {
			return document.Errorf(indexed("spec.exportTo", i), "is %q, should be \".\", \"*\", \"~\" or a namespace", document.Abridge(ns))
		}
	}
	return nil
}

// newWorkload makes the compact form of a WorkloadEntry, or says which field is wrong.
func (d *decoder) newWorkload(m *networking.WorkloadEntry) (*workload, *document.Error) {
	// A WorkloadEntry does not say how it will be resolved: a name is as good as an address until something selects it.
	ep, ferr := d.newEndpoint(m, "spec", ResolveDNS)
	if ferr != nil {
		return nil, ferr
	}
	labels, ferr := d.newLabels(m.Labels, "spec.labels")
	return &workload{endpoint: ep, labels: labels}, ferr
}

func (d *decoder) newEndpoint(m *networking.WorkloadEntry, path string, r Resolution) (Endpoint, *document.Error) {
	ep := Endpoint{Address: m.Address, Locality: d.Intern(m.Locality), Weight: m.Weight}
	if m.Address != "" || m.Network == "" { // with a network, Istio has an endpoint that is behind its gateway
		if ferr := checkAddress(&ep, path+".address", r); ferr != nil {
			return ep, ferr
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.Ports)) {
		n := m.Ports[name]
		switch {
		case ep.isUnix():
			return ep, document.Errorf(path+".ports", "has no meaning for a Unix domain socket; remove it")
		case n < 1 || n > 65535:
			return ep, document.Errorf(path+".ports["+name+"]", "is %d, should be 1 to 65535", n)
		}
		ep.ports = append(ep.ports, portOverride{d.Intern(name), uint16(n)})
	}
	_, ferr := d.newLabels(m.Labels, path+".labels")
	return ep, ferr
}

// checkAddress holds the rules for one endpoint's address under a resolution, and puts it in its canonical form.
func checkAddress(ep *Endpoint, path string, r Resolution) *document.Error {
	if name, unix := strings.CutPrefix(ep.Address, unixPrefix); unix {
		switch {
		case r != ResolveStatic && path != "spec.address":
			return document.Errorf(path, "is a Unix domain socket, which needs resolution STATIC, not %s", r)
		case !strings.HasPrefix(name, "/") && (!strings.HasPrefix(name, "@") || len(name) < 2):
			return document.Errorf(path, "is %q, should be unix:///absolute/path or unix://@abstract", document.Abridge(ep.Address))
		case len(name) > unixsock.MaxPath || strings.ContainsRune(name, 0):
			return document.Errorf(path, "is a socket path of %d bytes, should have at most %d and no NUL", len(name), unixsock.MaxPath)
		}
		return nil
	}
	if a, err := netip.ParseAddr(ep.Address); err == nil && a.Zone() == "" {
		ep.Address = a.Unmap().String()
		return nil
	}
	switch {
	case ep.Address == "":
		return document.Errorf(path, "is missing")
	case r == ResolveStatic:
		return document.Errorf(path, "is %q, resolution STATIC needs an IP address; say resolution DNS for a name", document.Abridge(ep.Address))
	}
	ep.Address = strings.ToLower(ep.Address) // a dot at its end stays: the name is absolute then
	if reason := checkHost(canonicalHost(ep.Address), false); reason != "" {
		return document.Errorf(path, "is %q, should be an IP address or a host name: %s", document.Abridge(ep.Address), reason)
	}
	return nil
}

func (d *decoder) newLabels(in map[string]string, path string) ([]label, *document.Error) {
	out := make([]label, 0, len(in))
	for k, v := range in {
		if k == "" || len(v) > 63 {
			return nil, document.Errorf(path+"["+document.Abridge(k)+"]", "is %q, label keys are not empty and values have at most 63 characters", document.Abridge(v))
		}
		out = append(out, label{d.Intern(k), d.Intern(v)})
	}
	slices.SortFunc(out, func(a, b label) int { return strings.Compare(a.key, b.key) })
	return out, nil
}
