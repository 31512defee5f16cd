// Package dnsproxy owns the pod's DNS server: the sockets on port 15053, and the
// way of a query from the table of names over the cache to the servers of
// resolv.conf. Each of these is a package below this one; so are the virtual
// addresses (vip).
//
// What table and cache hold is answered on the bytes in the read loop, a batch
// of datagrams at a time and without an allocation; only what has to wait gets
// a goroutine, and those are bounded.
//
// The server answers as RFC 1034/1035 with RFC 2308 (negative answers), 6891
// (EDNS0), 7766 (TCP), 8767 (expired answers while no server answers), 8906 (no
// query is left without an answer for being unusual), 9520 (failures are kept)
// and 9619 (one question a query).
package dnsproxy
