package handoff

import "fmt"

const (
	// currentProtocol is the hand-off protocol of this release. It grows by one when an older
	// release could not take part as it is; new messages and fields alone need no new one.
	currentProtocol = 1
	// protocolReach: releases whose protocols are at most this far apart understand each
	// other.
	protocolReach = 2
)

// protocolRange is what a side speaks; greetings carry it.
type protocolRange struct{ min, max uint8 }

func ownProtocols() protocolRange { return reachOf(currentProtocol) }

func reachOf(protocol uint8) protocolRange {
	return protocolRange{max(1, protocol, protocolReach+1) - protocolReach, protocol}
}

// negotiate picks the highest protocol that both speak.
func negotiate(mine, theirs protocolRange) (uint8, error) {
	if theirs.min == 0 || theirs.max < theirs.min {
		return 0, fmt.Errorf("protocols %d to %d make no sense", theirs.min, theirs.max)
	}
	common := min(mine.max, theirs.max)
	if common < mine.min || common < theirs.min {
		return 0, fmt.Errorf("no protocol in common: this agent speaks %d to %d, the other %d to %d: upgrade by way of a release in between",
			mine.min, mine.max, theirs.min, theirs.max)
	}
	return common, nil
}
