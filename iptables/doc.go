// Package iptables owns the netfilter state that captures a pod's traffic: the
// ISTIO_* chains, the jumps to them, and the address ::6 on lo, in one network
// namespace. It owns nothing else there and leaves the rules of others alone.
//
// The work has three steps, and only the last one touches the system:
//
//	Rules(Config)          what should be there, as data (pure)
//	Render(rules, family)  the same as input of iptables-restore (pure)
//	Apply(ctx, Config)     makes it so, from whatever is there now
//
// Read looks at what is there, whoever made it: Verify compares it with a Config, Infer
// finds the Config that it was made from, and Trace follows a packet through it.
//
// # What is ours
//
// A rule belongs to this package when it is in a chain named ISTIO_*, jumps to
// one, or carries a comment that starts with "understudy: ". Chain names are
// Istio's, so that whatever Istio's own istio-iptables left behind is taken over;
// its few rules in built-in chains that have neither mark are known by their exact
// shape, and only where other traces of Istio show who made them (see istioShapes).
//
// # One transaction a table
//
// Apply reads the state with iptables-save and hands one input per family to
// iptables-restore --noflush. That input replaces our part of each table that
// differs, and the kernel commits each table as a whole: raw, mangle, nat, in this
// order. When a later table or family fails, those already committed are put back.
// Nothing to change means nothing is run.
package iptables
