package rule

import "errors"

// Backend names what writes the rules: a family of iptables binaries, or this agent.
type Backend string

// The back ends. Auto looks at what is already there; see iptables.Choose.
const (
	Auto   Backend = ""
	Legacy Backend = "legacy"   // xtables: iptables-legacy
	NFT    Backend = "nft"      // nf_tables: iptables-nft
	Plain  Backend = "plain"    // whatever "iptables" is, where neither of the above is installed
	Native Backend = "nftables" // nf_tables through netlink, without binaries
)

// Title is the name that people know a back end by.
func (b Backend) Title() string {
	switch b {
	case Plain:
		return "iptables"
	case Legacy, NFT:
		return "iptables-" + string(b)
	}
	return string(b)
}

// ErrAbsent says that the container or the kernel does not have a back end or family.
var ErrAbsent = errors.New("not there")

// Holding says who has rules in a back end, for some IP versions.
type Holding struct {
	Backend Backend
	Family  Family
	Used    Usage
}

// Usage says who has rules somewhere.
type Usage int

// The usages; a higher one is a better reason to put rules there.
const (
	Unused Usage = iota
	UsedByOthers
	UsedByUs // or by Istio before us
)
