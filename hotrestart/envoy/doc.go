// Package envoy owns Envoy's own hot-restart protocol, datagrams between two Envoys. The
// agent stands in the middle: a Child asks the running Envoy for its listening sockets, a
// Parent answers the next Envoy that asks for them.
//
// No Envoy ever speaks to another, and no agent to another agent's Envoy: so the death of
// one generation cannot take the other's Envoy with it.
package envoy
