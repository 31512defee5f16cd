package iptables

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
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

// Unseen returns the chains of nf_tables that packets meet and whose rules cannot be
// read here: made by nft, or by iptables-nft where its binaries are missing.
func (s *Snapshot) Unseen() ([]string, error) {
	chains, err := s.net.nftChains()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, c := range chains {
		if !s.sees(c) {
			out = append(out, c.String())
		}
	}
	return out, nil
}

func (s *Snapshot) sees(c nftChain) bool {
	ours := slices.ContainsFunc(tableOrder, func(t Table) bool { return nativeTable(t) == c.table })
	return slices.ContainsFunc(s.states, func(st state) bool {
		switch st.backend {
		case Legacy:
			return false
		case Native:
			return ours
		}
		return c.iptables && st.family == c.family
	})
}

// unseenBy returns those that a packet of an IP version meets.
func (s *Snapshot) unseenBy(f Family) (out []string, err error) {
	chains, err := s.net.nftChains()
	for _, c := range chains {
		if c.family&f != 0 && !s.sees(c) {
			out = append(out, c.String())
		}
	}
	return out, err
}

// baseChains asks the kernel, as `nft list chains` does.
func baseChains() ([]nftChain, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil // a kernel without nf_tables
	}
	if err != nil {
		return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
	}
	var out []nftChain
	for _, answer := range answers {
		c, ok, err := parseNFTChain(answer)
		if err != nil {
			return nil, fmt.Errorf("list the chains of nf_tables: %w", err)
		}
		if ok {
			out = append(out, c)
		}
	}
	return out, nil
}

// families of nf_tables, include/uapi/linux/netfilter.h. Others see no IP packet of a
// process.
const nftInet = 1 // NFPROTO_INET; those of one version are AF_INET and AF_INET6

func parseNFTChain(answer []byte) (c nftChain, asked bool, err error) {
	if len(answer) < nl.SizeofNfgenmsg {
		return c, false, errors.New("an answer without a head")
	}
	attrs, err := nl.ParseRouteAttr(answer[nl.SizeofNfgenmsg:])
	if err != nil {
		return c, false, err
	}
	switch answer[0] {
	case nftInet:
		c.family = Both
	case unix.AF_INET:
		c.family = IPv4
	case unix.AF_INET6:
		c.family = IPv6
	default:
		return c, false, nil
	}
	hooked, used := false, false
	for _, a := range attrs {
		text := string(bytes.TrimRight(a.Value, "\x00"))
		switch a.Attr.Type & nl.NLA_TYPE_MASK {
		case unix.NFTA_CHAIN_TABLE:
			c.table = text
		case unix.NFTA_CHAIN_NAME:
			c.name = text
		case unix.NFTA_CHAIN_HOOK:
			hooked = true
		case unix.NFTA_CHAIN_USE: // how many rules it has
			used = len(a.Value) == 4 && binary.BigEndian.Uint32(a.Value) > 0
		}
	}
	c.iptables = c.family != Both && slices.Contains(iptablesTables, c.table)
	return c, hooked && used, nil
}
