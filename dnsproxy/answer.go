package dnsproxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Source says which part of the server gave an answer.
type Source uint8

// The sources, in the order in which they are asked.
const (
	SourceTable    Source = iota // the name table
	SourceCache                  // an earlier upstream answer
	SourceStale                  // the same, beyond its TTL, because no server answers
	SourceUpstream               // a server of resolv.conf
	SourceFailure                // nobody: SERVFAIL made here, or a failure of just before
	SourceReject                 // a query that RFCs say to refuse
	sources
)

// String returns the source as metrics and the command line name it.
func (s Source) String() string {
	names := [sources]string{"table", "cache", "stale", "upstream", "failure", "reject"}
	if s < sources {
		return names[s]
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// answer is what a handler says to a query. msg is a DNS message whose
// question has q's name and type, uncompressed at offset 12, and that has no
// OPT record; id, case and the client's flags are put in by finish. The
// receiver owns msg.
type answer struct {
	msg    []byte
	source Source
	server netip.AddrPort // that gave it: upstream, cache and stale
	rtt    time.Duration  // upstream only
	age    time.Duration  // cache and stale

	// late delivers one answer more where msg only says that time is up: a
	// server may yet answer. It is the receiver's to read. pending says the same
	// where another reads it.
	late    <-chan answer
	pending bool
}

func good(a answer) bool {
	code := rcodeOf(a.msg)
	return code != rcodeServFail && code != rcodeRefused && code != rcodeNotImp && code != rcodeFormErr
}

// denies says whether msg is that the name which was asked for does not exist; not
// the one that it is an alias of.
func denies(msg []byte) bool {
	return rcodeOf(msg) == rcodeNXDomain && binary.BigEndian.Uint16(msg[6:]) == 0
}
