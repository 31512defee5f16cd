package profile

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// all stands for every port or address in a list of what is captured.
const all = "*"

func (c *checker) capture(p *Capture) {
	const field = "spec.capture."
	oneOf(c, field+"mode", p.Mode, Redirect, TProxy, None)
	c.ranges(field+"includeOutboundIPRanges", p.IncludeOutboundIPRanges, true)
	c.ranges(field+"excludeOutboundIPRanges", p.ExcludeOutboundIPRanges, false)
	c.ports(field+"includeInboundPorts", p.IncludeInboundPorts, true)
	c.ports(field+"excludeInboundPorts", p.ExcludeInboundPorts, false)
	c.ports(field+"includeOutboundPorts", p.IncludeOutboundPorts, false)
	c.ports(field+"excludeOutboundPorts", p.ExcludeOutboundPorts, false)
	c.interfaces(field+"excludeInterfaces", p.ExcludeInterfaces)
	c.interfaces(field+"rerouteVirtualInterfaces", p.RerouteVirtualInterfaces)
}

// ranges judges CIDRs. In an include list, "*" may stand alone.
func (c *checker) ranges(field string, list []string, include bool) {
	for i, v := range list {
		if include && v == all && len(list) == 1 {
			continue
		}
		if _, err := netip.ParsePrefix(v); err != nil {
			c.add(fmt.Sprintf("%s[%d]", field, i), v, "want a CIDR, such as 10.0.0.0/8%s", orAll(include))
		}
	}
}

func (c *checker) ports(field string, list []intstr.IntOrString, include bool) {
	for i, v := range list {
		if include && v.String() == all && len(list) == 1 {
			continue
		}
		if n, err := strconv.ParseUint(v.String(), 10, 16); err != nil || n == 0 {
			c.add(fmt.Sprintf("%s[%d]", field, i), v.String(), "want a port from 1 to 65535%s", orAll(include))
		}
	}
}

func orAll(include bool) string {
	if include {
		return `, or "*" alone for all`
	}
	return ""
}

// interfaceName is Istio's rule.
var interfaceName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.\-]*$`)

func (c *checker) interfaces(field string, list []string) {
	for i, v := range list {
		if !interfaceName.MatchString(v) {
			c.add(fmt.Sprintf("%s[%d]", field, i), v, "want the name of a network interface, such as net1")
		}
	}
}

func (c *checker) controlPlane(p *ControlPlane) {
	const field = "spec.controlPlane."
	oneOf(c, field+"mode", p.Mode, ModeIstiod, ModeFiles)
	if p.ConfigMap != nil && *p.ConfigMap != "" {
		c.each(field+"configMap", *p.ConfigMap, validation.IsDNS1123Subdomain(*p.ConfigMap))
	}
	parsed(c, field+"discoveryAddress", p.DiscoveryAddress, hostPort)
	parsed(c, field+"caAddress", p.CAAddress, hostPort)
	parsed(c, field+"trustDomain", p.TrustDomain, dnsName)
	parsed(c, field+"clusterDomain", p.ClusterDomain, dnsName)
}

func hostPort(v string) error {
	host, port, err := net.SplitHostPort(v)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 {
		return fmt.Errorf("want host:port, such as %s", defaultDiscovery)
	}
	return nil
}

func dnsName(v string) error {
	if len(validation.IsDNS1123Subdomain(v)) > 0 {
		return fmt.Errorf("want a domain, such as %s", defaultDomain)
	}
	return nil
}
