package vip

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
	"understudy.mesh/pkg/journal"
)

// Open reads the file, if there is one. A file that is damaged or not of this range is
// set aside with a warning, and hosts get what their hash says. Errors are about c.
func Open(c Config) (*Pool, error) {
	c.V4, c.V6 = c.V4.Masked(), c.V6.Masked()
	if !c.V4.Addr().Is4() || c.V4.Bits() < 32-maxIndexBits || c.V4.Bits() > 29 {
		return nil, fmt.Errorf("open VIP pool: IPv4 range %s: use a prefix of /16 to /29, as 240.240.0.0/16", c.V4)
	}
	if c.IPv6 && (!c.V6.Addr().Is6() || 128-c.V6.Bits() < 32-c.V4.Bits()) {
		return nil, fmt.Errorf("open VIP pool: IPv6 range %s: use a prefix that has room for all of %s, as 2001:2::/48", c.V6, c.V4)
	}
	c.Quarantine = cmp.Or(c.Quarantine, defaultQuarantine)
	c.Log = cmp.Or(c.Log, slog.Default())
	if c.Now == nil {
		c.Now = time.Now
	}
	v := &Pool{config: c, log: c.Log, changed: map[string]struct{}{}}
	if c.Path != "" {
		v.store = journal.New(c.Path, maxJournal)
	}
	for i := range v.size() {
		if v.usable(i) {
			v.capacity++
		}
	}
	v.load()
	return v, nil
}

// Assign returns the addresses of hosts, the whole set that wants some: IPv4 first,
// then IPv6. A host keeps what it has. One that is missing loses it, and gets the same
// again if it comes back before another needed it, which is never within the quarantine.
// Where no address is left the error names the hosts without one, and the map has the
// others.
//
// declared are all addresses that documents declare: a host that had one of these gets
// another, which is logged. A prefix as large as a range declares nothing of it.
func (v *Pool) Assign(hosts []string, declared ...netip.Prefix) (map[string][]netip.Addr, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	wanted := make(map[string]struct{}, len(hosts))
	for _, h := range hosts {
		if h = wire.Normal(h); h != "" {
			wanted[h] = struct{}{}
		}
	}
	v.free(wanted)
	v.setDeclared(v.declaredOf(declared), v.config.Now())
	had := v.displace()
	unassigned := v.give(v.arrivals(wanted))
	v.tellDisplaced(had)
	v.save()
	given := make(map[string][]netip.Addr, len(v.assigned))
	all := make([]netip.Addr, 0, 2*len(v.assigned)) // one allocation instead of one a host
	for h, index := range v.assigned {
		begin := len(all)
		all = v.appendAddrs(all, index)
		given[h] = slices.Clip(all[begin:])
	}
	if v.pending = len(unassigned); v.pending == 0 {
		return given, nil
	}
	v.exhausted += uint64(v.pending)
	return given, v.exhaustion(unassigned)
}

func (v *Pool) exhaustion(hosts []string) error {
	slices.Sort(hosts)
	more := ""
	if len(hosts) > maxNamed {
		more = fmt.Sprintf(" and %d more", len(hosts)-maxNamed)
	}
	s := v.stats()
	return fmt.Errorf("assign VIPs: %s is exhausted (%d of %d addresses in use, %d declared by documents, %d in quarantine for %s after their host left): no address for %s%s; remove hosts or give them addresses",
		v.config.V4, s.Assigned, s.Capacity, len(v.declared), s.Quarantined, v.config.Quarantine, strings.Join(hosts[:min(len(hosts), maxNamed)], ", "), more)
}

// maxNamed is how many hosts an error names; it says how many there are.
const maxNamed = 10
