// Package iptables owns the netfilter state that captures a pod's traffic: the ISTIO_*
// chains, the jumps to them, the address ::6 on lo and, in TPROXY mode, the routes that
// bring marked packets to Envoy. The rules of others are left alone.
//
// The work has three steps, and only the last one touches the system:
//
//	Rules(Config)          what should be there, as data (pure)
//	Render(rules, family)  the same as input of iptables-restore (pure)
//	RenderNative(rules)    the same as input of nft (pure)
//	Apply(ctx, Config)     makes it so, from whatever is there now
//
// There are three back ends: iptables-nft and iptables-legacy by their binaries
// (internal/xtables), and nf_tables by netlink (internal/nftables). Rules are wanted in
// one of them and removed from the others.
//
// # What is ours
//
// A rule is ours when it is in a chain named ISTIO_*, jumps to one, or has a comment
// that starts with "understudy: ". Names are Istio's, so that what its istio-iptables
// left behind is taken over. Istio's few rules with neither mark are known by their
// exact shape, where other traces of Istio show who made them. In nf_tables, the tables
// istio-proxy-raw, -mangle and -nat of family inet are ours with everything in them.
//
// A policy rule is ours when its routing protocol is ours, or when its mark is one that
// rules of ours or of Istio's set and its table does nothing but deliver to this pod.
//
// # One transaction a table
//
// Apply reads the state with iptables-save and hands what differs to one
// iptables-restore --noflush per family. The kernel commits each table as a whole: raw,
// mangle, nat. When a later one fails, those already committed are put back.
//
// In nf_tables all tables and both IP versions are one transaction. Rules and sets are
// read back and compared by what they mean, so a change by hand is repaired. A list of
// addresses or ports is a set: a packet meets as many rules with one as with thousands.
package iptables
