package handoff

import "time"

// Deadlines of the hand-off. A peer that died is an EOF, at once; these are for one
// that hangs.
const (
	// frameTimeout bounds one frame, from its first byte to its last, either way: it
	// fits the buffer of the socket.
	frameTimeout = 5 * time.Second
	// helloTimeout: a newcomer has its first message ready when it connects.
	helloTimeout = 2 * time.Second
	// decideTimeout is for the owner of a server, whose loop may be at work.
	decideTimeout = 5 * time.Second
	// warmTimeout is how long a newcomer may hold the place of others while it starts
	// its Envoy, which may wait for an unreachable control plane or a Wasm module.
	warmTimeout = 5 * time.Minute
	// giveTimeout: the sockets are at hand.
	giveTimeout = 10 * time.Second
	// holdTimeout is for what is left to do for a newcomer that has the sockets: its Envoy
	// warms listeners and starts its workers.
	holdTimeout = 2 * time.Minute
	// releaseTimeout: letting go is closing, or leaving off.
	releaseTimeout = 10 * time.Second
	// commitTimeout: the newcomer has had every socket for some time.
	commitTimeout = 10 * time.Second
	// probationTime is how long the old generation keeps copies of every socket after it
	// let go, and takes back when the newcomer dies.
	probationTime = 2 * time.Second
	// answerSlack is what the asking side waits longer than the answering side may take,
	// so that the reason arrives before patience ends.
	answerSlack = 2 * time.Second
)

// timing holds the deadlines of one side, so that tests need not wait for them.
type timing struct {
	frame, hello, decide, warm, give, hold, release, commit, probation, slack time.Duration
}

func defaultTiming() timing {
	return timing{
		frame: frameTimeout, hello: helloTimeout, decide: decideTimeout, warm: warmTimeout, give: giveTimeout,
		hold: holdTimeout, release: releaseTimeout, commit: commitTimeout, probation: probationTime, slack: answerSlack,
	}
}
