// Package hotrestart owns sockets and how they change hands: from a running Envoy to
// its agent, from one generation of the agent to the next, and from an agent to the
// Envoy that it starts.
//
// Two protocols meet here. envoy_*.go speak Envoy's own hot-restart protocol, datagrams
// between two Envoys, and the agent is in the middle of it: a Child asks the running
// Envoy for its listening sockets, a Parent answers the next Envoy that asks for them.
// handoff_*.go speak the protocol between two agents, which is ours. Both deal in
// Sockets.
//
// No Envoy ever speaks to another, and no agent to another agent's Envoy: so the death
// of one generation cannot take the other's Envoy with it.
package hotrestart
