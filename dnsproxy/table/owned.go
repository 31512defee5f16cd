package table

import (
	"slices"
	"strings"
)

// Owned returns hosts, in place, without those that have no address, but for what a wildcard with addresses covers: that
// one must not answer for a host with a name of its own.
func Owned(hosts []Host) []Host {
	answering := map[string]bool{} // what is behind the star of wildcards
	for _, h := range hosts {
		if suffix, ok := strings.CutPrefix(h.Name, "*."); ok && len(h.Addrs) > 0 {
			answering[suffix] = true
		}
	}
	return slices.DeleteFunc(hosts, func(h Host) bool { return len(h.Addrs) == 0 && !below(h.Name, answering) })
}

// below says whether name is below one of domains.
func below(name string, domains map[string]bool) bool {
	for found := len(domains) > 0; found; {
		if _, name, found = strings.Cut(name, "."); domains[name] {
			return true
		}
	}
	return false
}
