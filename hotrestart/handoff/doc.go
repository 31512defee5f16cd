// Package handoff owns the protocol in which one generation of the agent gives its
// listening sockets and its state to the next: where the two find each other (Dir), what
// they say (Server and Newcomer on the old side, Client on the new), and who is newer.
package handoff
