package handoff

import "time"

// timing holds the deadlines of one side; tests have shorter ones. A peer that died is an
// EOF, at once: these are for one that hangs.
type timing struct {
	frame, hello, decide, warm, give, hold, release, commit, probation, slack time.Duration
}

func defaultTiming() timing {
	return timing{
		// One frame, from its first byte to its last, either way: it fits the buffer of the socket.
		frame: 5 * time.Second,
		// A newcomer has its first message ready when it connects.
		hello: 2 * time.Second,
		// The owner of a server may have its loop at work.
		decide: 5 * time.Second,
		// How long a newcomer may hold the place of others while it starts its Envoy, which
		// may wait for an unreachable control plane or a Wasm module.
		warm: 5 * time.Minute,
		// The sockets are at hand.
		give: 10 * time.Second,
		// What is left to do for a newcomer that has the sockets: its Envoy warms listeners
		// and starts its workers.
		hold: 2 * time.Minute,
		// Letting go is closing, or leaving off.
		release: 10 * time.Second,
		// The newcomer has had every socket for some time.
		commit: 10 * time.Second,
		// How long the old generation keeps copies of every socket after it let go, and takes
		// back when the newcomer dies.
		probation: 2 * time.Second,
		// What the asking side waits longer than the answering side may take, so that the
		// reason arrives before patience ends.
		slack: 2 * time.Second,
	}
}
