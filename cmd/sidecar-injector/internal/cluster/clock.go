package cluster

import (
	"net/http"
	"sync"
	"time"
)

// clock is the API server's, as its answers have it: this machine's may go otherwise, and times that controllers compare with those of
// pods have to be of one clock.
type clock struct {
	now func() time.Time

	mu    sync.Mutex
	ahead time.Duration // of ours
}

// watch passes requests on and reads the time of the answers.
func (c *clock) watch(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil {
			return response, err
		}
		if at, wrong := http.ParseTime(response.Header.Get("Date")); wrong == nil {
			c.mu.Lock()
			c.ahead = at.Sub(c.now())
			c.mu.Unlock()
		}
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Now is the time at the API server, to the second.
func (c *Cluster) Now() time.Time {
	c.clock.mu.Lock()
	defer c.clock.mu.Unlock()
	return c.clock.now().Add(c.clock.ahead).UTC().Truncate(time.Second)
}
