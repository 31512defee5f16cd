package envoy

import (
	"fmt"
	"time"
)

const (
	// firstBackOff doubles with each life that was too short, up to lastBackOff: what is
	// wrong may pass, and a start costs a core for half a second.
	firstBackOff = 200 * time.Millisecond
	lastBackOff  = 3 * time.Second
	// steadyLife is how long an Envoy must have served for the next one to be started at
	// once: whoever dies sooner dies of what the next one meets as well.
	steadyLife = 10 * time.Second
	// loopDeaths within loopTime are a crash loop: the pod serves now and then, and is
	// better taken out of its service.
	loopDeaths = 3
	loopTime   = time.Minute
	// loopPatience is how long a crash loop may last before the agent ends as well: then
	// restart counts and alerts see it, and what only a new container mends is mended.
	loopPatience = 10 * time.Minute
	// maxEarlyDeaths is how many Envoys in a row may die before the first one
	// ever served: then the cause is not a passing one.
	maxEarlyDeaths = 5
)

// crashes judges the deaths of one Envoy after the other. It is told the time.
type crashes struct {
	short  int         // lives in a row that were shorter than steadyLife
	deaths []time.Time // the last ones, loopDeaths at most
	since  time.Time   // when the crash loop began; zero while there is none
}

// died notes the end of a life that served for as long as served, 0 when it never did, and
// returns how long the next one has to wait.
func (c *crashes) died(now time.Time, served time.Duration) (pause time.Duration) {
	if !c.looping(now) {
		c.since = time.Time{}
	}
	if len(c.deaths) == loopDeaths {
		c.deaths = append(c.deaths[:0], c.deaths[1:]...)
	}
	c.deaths = append(c.deaths, now)
	if c.since.IsZero() && c.looping(now) {
		c.since = now
	}
	if served >= steadyLife {
		c.short = 0
		return 0
	}
	// Shifted by more, the duration would overflow; lastBackOff is reached long before.
	pause = min(firstBackOff<<min(c.short, maxEarlyDeaths), lastBackOff)
	c.short++
	return pause
}

// calmIn is how long no other death must happen for the crash loop to be over; 0 when
// there is none.
func (c *crashes) calmIn(now time.Time) time.Duration {
	if len(c.deaths) < loopDeaths {
		return 0
	}
	return max(c.deaths[0].Add(loopTime).Sub(now), 0)
}

// looping tells whether Envoy has died too often of late.
func (c *crashes) looping(now time.Time) bool { return c.calmIn(now) > 0 }

// hopeless tells whether that has been so for too long.
func (c *crashes) hopeless(now time.Time) bool {
	return c.looping(now) && now.Sub(c.since) >= loopPatience
}

// reason is what readiness says of a crash loop.
func (c *crashes) reason(last string) string {
	return fmt.Sprintf("Envoy ended %d times within %v, the last time with %s: its own log says why", loopDeaths, loopTime, last)
}
