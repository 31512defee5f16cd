package mesh

import (
	"fmt"
	"strings"

	"understudy.mesh/pkg/mesh/internal/document"
)

// isWildcard says whether host stands for more than one name: *.example.com, or a partial wildcard.
func isWildcard(host string) bool { return strings.HasPrefix(host, "*") }

// isPartial says whether host is a wildcard within its first label, such as *-eu.example.com. Envoy tells it by Host
// (RouteConfiguration: "suffix domain wildcards"), but neither it by SNI nor anybody by DNS (RFC 4592).
func isPartial(host string) bool { return isWildcard(host) && !strings.HasPrefix(host, "*.") }

// canonicalHost is host as it is compared: in lower case and without the dot of an absolute name.
func canonicalHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

// checkHost returns what is wrong with a canonical host name (RFC 1123, RFC 1035 2.3.4), or "".
func checkHost(host string, wildcard bool) string {
	const most = 253 // RFC 1035: 255 octets on the wire
	name := host
	if rest, ok := strings.CutPrefix(host, "*"); ok && wildcard {
		if name, ok = strings.CutPrefix(rest, "."); !ok {
			name = strings.TrimPrefix(rest, "-")
		}
	}
	switch {
	case host == "*":
		return "should name a domain, such as *.example.com"
	case name == "":
		return "should be a host name"
	case len(host) > most:
		return fmt.Sprintf("should have at most %d characters", most)
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		switch {
		case strings.Contains(l, "*"):
			return "should have its wildcard at the beginning of the first label, such as *.example.com"
		case !isHostLabel(l):
			return fmt.Sprintf("the label %q should be 1 to 63 letters, digits and '-'", document.Abridge(l))
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return "should be a host name, not an address or a number; addresses go to spec.addresses"
	}
	return ""
}

// isHostLabel takes '_' too, which RFC 1123 does not and real names (SRV owners, docker compose) have.
func isHostLabel(s string) bool { return isLabel(strings.ReplaceAll(s, "_", "x")) }

// isLabel says whether s is a DNS label in lower case (RFC 1123 2.1).
func isLabel(s string) bool {
	if len(s) < 1 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
