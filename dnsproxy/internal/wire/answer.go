package wire

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
	Sources
)

// String returns the source as metrics and the command line name it.
func (s Source) String() string {
	names := [Sources]string{"table", "cache", "stale", "upstream", "failure", "reject"}
	if s < Sources {
		return names[s]
	}
	return fmt.Sprintf("source %d", uint8(s))
}

// Answer is what a handler says to a query. Msg is a DNS message whose
// question has q's name and type, uncompressed at offset 12, and that has no
// OPT record; id, case and the client's flags are put in by Finish. The
// receiver owns msg.
type Answer struct {
	Msg    []byte
	Source Source
	Server netip.AddrPort // that gave it: upstream, cache and stale
	RTT    time.Duration  // upstream only
	Age    time.Duration  // cache and stale

	// Late delivers one answer more where Msg only says that time is up: a
	// server may yet answer. It is the receiver's to read. Pending says the same
	// where another reads it.
	Late    <-chan Answer
	Pending bool
}

// Good says whether a is of use to who asked: yes or no, and not that it went wrong.
func Good(a Answer) bool {
	code := RcodeOf(a.Msg)
	return code != RcodeServFail && code != rcodeRefused && code != RcodeNotImp && code != RcodeFormErr
}

// Denies says whether msg is that the name which was asked for does not exist; not
// the one that it is an alias of.
func Denies(msg []byte) bool {
	return RcodeOf(msg) == RcodeNXDomain && binary.BigEndian.Uint16(msg[6:]) == 0
}
