// Package iptables owns the netfilter state that captures a pod's traffic: the
// ISTIO_* chains, the jumps to them, the address ::6 on lo and, in TPROXY mode, the
// routes that bring marked packets to Envoy, in one network namespace. It owns nothing else there and leaves the rules of others alone.
//
// The work has three steps, and only the last one touches the system:
//
//	Rules(Config)          what should be there, as data (pure)
//	Render(rules, family)  the same as input of iptables-restore (pure)
//	RenderNative(rules)    the same as input of nft (pure)
//	Apply(ctx, Config)     makes it so, from whatever is there now
//
// There are three back ends, each a backend: iptables-nft and iptables-legacy by their
// binaries (internal/xtables), and nf_tables by netlink with no binary at all
// (internal/nftables). Rules are wanted in one of them and taken away from the others.
//
// Package rule has the words of all of them. Package inspect looks at what is in force,
// whoever made it.
//
// # What is ours
//
// A rule belongs to this package when it is in a chain named ISTIO_*, jumps to
// one, or carries a comment that starts with "understudy: ". Chain names are
// Istio's, so that whatever Istio's own istio-iptables left behind is taken over;
// its few rules in built-in chains that have neither mark are known by their exact
// shape, and only where other traces of Istio show who made them (see istioShapes).
// In nf_tables, ours are the tables istio-proxy-raw, -mangle and -nat of family inet,
// with everything in them: Istio's names again, and no place for anybody else's rules.
//
// A policy rule is ours when its routing protocol is ours, or when its mark is one that
// rules of ours or of Istio's set and its table does nothing but deliver to this pod.
//
// # One transaction a table
//
// Apply reads the state with iptables-save and hands one input per family to
// iptables-restore --noflush. That input replaces our part of each table that
// differs, and the kernel commits each table as a whole: raw, mangle, nat, in this
// order. When a later table or family fails, those already committed are put back.
// Nothing to change means nothing is run.
//
// In nf_tables all tables and both IP versions are one transaction. The rules and sets
// are read back and compared by what they mean, not by who wrote them when, so a change
// by hand is found and repaired, and nothing is written where nothing differs. A list of
// addresses or ports is a set: a packet meets as many rules with one as with thousands.
package iptables
