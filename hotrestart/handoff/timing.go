package handoff

import "time"

// A peer that died is an EOF, at once: these deadlines are for one that hangs.
const (
	// frameTimeout bounds one frame, from its first byte to its last, either way: it fits the buffer of the socket.
	frameTimeout = 5 * time.Second
	// helloTimeout bounds a newcomer's first message, which is ready when it connects.
	helloTimeout = 2 * time.Second
	// decideTimeout bounds the owner's answer to a newcomer: its loop may be at work.
	decideTimeout = 5 * time.Second
	// warmTimeout is how long a newcomer may hold the place of others while it starts its Envoy, which
	// may wait for an unreachable control plane or a Wasm module.
	warmTimeout = 5 * time.Minute
	// giveTimeout bounds the giving of the sockets, which are at hand.
	giveTimeout = 10 * time.Second
	// holdTimeout bounds what a newcomer that has the sockets has left to do: its Envoy warms listeners and
	// starts its workers.
	holdTimeout = 2 * time.Minute
	// releaseTimeout bounds the release of the listeners, which is closing them, or not accepting any more.
	releaseTimeout = 10 * time.Second
	// commitTimeout bounds the newcomer's last step: it has had every socket for some time.
	commitTimeout = 10 * time.Second
	// probationTime is how long the old generation keeps copies of every socket after it released its listeners,
	// and takes back when the newcomer dies.
	probationTime = 2 * time.Second
	// slackTime is what the asking side waits longer than the answering side may take, so that the reason
	// arrives before the deadline.
	slackTime = 2 * time.Second
)

// timing holds the deadlines of one side; tests have shorter ones.
type timing struct {
	frame, hello, decide, warm, give, hold, release, commit, probation, slack time.Duration
}

func defaultTiming() timing {
	return timing{
		frame: frameTimeout, hello: helloTimeout, decide: decideTimeout, warm: warmTimeout, give: giveTimeout,
		hold: holdTimeout, release: releaseTimeout, commit: commitTimeout, probation: probationTime, slack: slackTime,
	}
}
