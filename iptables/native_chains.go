package iptables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// nftChain is a chain of nf_tables that the kernel asks by itself and that has rules.
type nftChain struct {
	family      Family
	table, name string
	iptables    bool // iptables-nft made it, and iptables-nft-save shows it
}

func (c nftChain) String() string {
	return fmt.Sprintf("nft table %s, chain %s (%v)", c.table, c.name, c.family)
}

// iptablesTables are the names that iptables-nft has for its tables.
var iptablesTables = []string{"raw", "mangle", "nat", "filter", "security"}

// baseChains asks the kernel, as `nft list chains` does.
func baseChains() ([]nftChain, error) {
	conn, err := dialNetfilter()
	var answers [][]byte
	if err == nil {
		answers, err = conn.ask(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil)
		conn.Close()
	}
	if errors.Is(absentNative(err), errAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	var out []nftChain
	for _, answer := range answers {
		c, asked, err := parseNFTChain(answer)
		if err != nil {
			return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
		}
		if asked {
			out = append(out, c)
		}
	}
	return out, nil
}

// parseNFTChain reads an answer about a chain. asked: packets of the IP versions that
// there are meet it, and it has rules.
func parseNFTChain(answer []byte) (c nftChain, asked bool, err error) {
	if len(answer) < nfgenmsgLen {
		return c, false, errors.New("an answer without a head")
	}
	switch answer[0] {
	case unix.NFPROTO_INET:
		c.family = Both
	case unix.NFPROTO_IPV4:
		c.family = IPv4
	case unix.NFPROTO_IPV6:
		c.family = IPv6
	default:
		return c, false, nil
	}
	attrs := answer[nfgenmsgLen:]
	c.table, c.name = attrName(attrs, unix.NFTA_CHAIN_TABLE), attrName(attrs, unix.NFTA_CHAIN_NAME)
	c.iptables = c.family != Both && slices.Contains(iptablesTables, c.table)
	used := attrUint32(attrs, unix.NFTA_CHAIN_USE) > 0 // how many rules it has
	return c, attribute(attrs, unix.NFTA_CHAIN_HOOK) != nil && used, nil
}
