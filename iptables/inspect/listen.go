package inspect

import (
	"fmt"
	"os"
	"strings"

	"understudy.mesh/iptables"
	"understudy.mesh/iptables/rule"
)

// Unheard returns the ports to which c sends traffic and on which nobody listens, which is
// right only while a pod starts.
func (s *Snapshot) Unheard(c iptables.Config) ([]Difference, error) {
	var out []Difference
	for _, at := range []struct {
		used  bool
		proto rule.Proto
		port  uint16
		whose string
	}{
		{c.IncludeCIDRs.All || len(c.IncludeCIDRs.List)+len(c.IncludeOutboundPorts) > 0, rule.TCP, c.ProxyPort, "outbound traffic goes there, to Envoy"},
		{c.InboundPorts.All || len(c.InboundPorts.List) > 0, rule.TCP, c.InboundPort, "inbound traffic goes there, to Envoy"},
		{c.DNS.Capture, rule.UDP, iptables.DNSProxyPort, "DNS queries go there, to the agent"},
		{c.DNS.Capture, rule.TCP, iptables.DNSProxyPort, "DNS queries go there, to the agent"},
	} {
		heard, err := s.net.listens(at.proto, at.port)
		if err != nil {
			return nil, err
		}
		if at.used && !heard {
			out = append(out, Difference{Kind: kindListener, Rule: fmt.Sprintf("%s port %d", at.proto, at.port), Why: at.whose,
				Text: fmt.Sprintf("nobody listens on %s port %d: %s", at.proto, at.port, at.whose)})
		}
	}
	return out, nil
}

// Hears reports whether somebody listens where a packet lands; true outside of the pod.
func (s *Snapshot) Hears(p rule.Proto, l Landing) (bool, error) {
	if l.Place == placeToPod || l.captured() {
		return s.net.listens(p, l.Addr.Port())
	}
	return true, nil
}

// States of sockets in /proc/net, include/net/tcp_states.h. A UDP socket without a
// peer is "closed".
const (
	tcpListen = "0A"
	udpBound  = "07"
)

// listens reads the sockets of the calling thread's network namespace: proc_net(5).
func listens(p rule.Proto, port uint16) (bool, error) {
	state, local := tcpListen, fmt.Sprintf(":%04X", port)
	if p == rule.UDP {
		state = udpBound
	}
	for _, file := range []string{"/proc/thread-self/net/" + string(p), "/proc/thread-self/net/" + string(p) + "6"} {
		text, err := os.ReadFile(file)
		if os.IsNotExist(err) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return false, fmt.Errorf("find out who listens: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) >= 4 && fields[3] == state && strings.HasSuffix(fields[1], local) {
				return true, nil
			}
		}
	}
	return false, nil
}
