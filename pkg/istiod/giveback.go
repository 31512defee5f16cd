package istiod

import (
	"time"

	"understudy.mesh/pkg/xds"
)

const (
	// muchGiven is how much of istiod's leaves memory behind that is worth giving back: messages are in it several times on their way.
	muchGiven = 256 << 10
	// giveBackAfter is how long istiod has to be quiet before that. A mesh in which something changes all the time goes without.
	giveBackAfter = 5 * time.Second
)

// giveBack finds out when there is memory to give back: the collector, which nobody needs once istiod is quiet, would leave half as
// much again as is in use to the process for good.
type giveBack struct {
	after time.Duration // giveBackAfter
	timer *time.Timer   // nil: nobody wants to know
	given int           // bytes since the last time
	pools bool          // what was pooled then is free only now
}

func (g *giveBack) begin(wanted bool) {
	if wanted {
		g.timer = time.NewTimer(g.after)
		g.timer.Stop()
	}
}

// note takes in that istiod has said something, and returns how many bytes.
func (g *giveBack) note(resp *xds.Response) (given int) {
	for _, r := range resp.Resources {
		given += len(r.Body)
	}
	g.add(given)
	return given
}

// add takes in that so many bytes more are in use no longer, or soon will not be.
func (g *giveBack) add(bytes int) {
	if g.timer == nil {
		return
	}
	if g.given += bytes; g.given >= muchGiven {
		g.pools = true
		g.timer.Reset(g.after)
	}
}

// done says that memory was given back. Pools of buffers let go of theirs when they have not been used from one time to the next.
func (g *giveBack) done() {
	g.given = 0
	if g.pools {
		g.pools = false
		g.timer.Reset(g.after)
	}
}

// end leaves no timer behind.
func (g *giveBack) end() {
	if g.timer != nil {
		g.timer.Stop()
	}
}

// release gives memory back: what is in the file need not be there.
func (l *loop) release() {
	l.keep()
	l.giveBack.done()
	l.i.c.GiveBack()
}
