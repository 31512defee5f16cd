package nftables

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.mesh/iptables/rule"
)

// Chain is a chain of nf_tables that the kernel asks by itself and that has rules.
type Chain struct {
	Family      rule.Family
	Table, name string
	Iptables    bool // iptables-nft made it, and iptables-nft-save shows it
}

func (c Chain) String() string {
	return fmt.Sprintf("nft table %s, chain %s (%v)", c.Table, c.name, c.Family)
}

// iptablesTables are the names that iptables-nft has for its tables.
var iptablesTables = []string{"raw", "mangle", "nat", "filter", "security"}

// BaseChains asks the kernel, as `nft list chains` does.
func BaseChains() ([]Chain, error) {
	conn, err := dialNetfilter()
	var answers [][]byte
	if err == nil {
		answers, err = conn.ask(unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, unix.NFPROTO_UNSPEC, nil)
		conn.Close()
	}
	if errors.Is(absent(err), rule.ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	var out []Chain
	for _, answer := range answers {
		c, asked, err := parseChain(answer)
		if err != nil {
			return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
		}
		if asked {
			out = append(out, c)
		}
	}
	return out, nil
}

// parseChain reads an answer about a chain. asked: packets meet it, and it has rules.
func parseChain(answer []byte) (c Chain, asked bool, err error) {
	if len(answer) < nfgenmsgLen {
		return c, false, errors.New("an answer without a head")
	}
	families := map[byte]rule.Family{unix.NFPROTO_INET: rule.Both, unix.NFPROTO_IPV4: rule.IPv4, unix.NFPROTO_IPV6: rule.IPv6}
	c.Family = families[answer[0]]
	if c.Family == 0 {
		return c, false, nil
	}
	attrs := answer[nfgenmsgLen:]
	c.Table, c.name = attrName(attrs, unix.NFTA_CHAIN_TABLE), attrName(attrs, unix.NFTA_CHAIN_NAME)
	c.Iptables = c.Family != rule.Both && slices.Contains(iptablesTables, c.Table)
	used := attrUint32(attrs, unix.NFTA_CHAIN_USE) > 0 // how many rules it has
	return c, attribute(attrs, unix.NFTA_CHAIN_HOOK) != nil && used, nil
}
