package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"understudy.mesh/tests/lab"
)

const (
	clients = 4
	// each is how long one client takes from one request to the next: 200 a second in all.
	each = 20 * time.Millisecond
	// settled is how much of a load is enough to say that nothing fails.
	settled = 200
)

// traffic is requests to the application from outside, each on a connection of its own, until it is stopped.
type traffic struct {
	stop func()

	mu     sync.Mutex // guards what follows
	counts counts
}

// counts is what has become of requests.
type counts struct {
	filtered   int // answered by the application, with the header
	unfiltered int // answered by it without
	failed     int // anything else
	first      string
}

func (c counts) String() string {
	text := fmt.Sprintf("%d requests, %d failed, %d without the header", c.filtered+c.unfiltered+c.failed, c.failed, c.unfiltered)
	if c.first != "" {
		text += ": the first: " + c.first
	}
	return text
}

// whole reports whether each request was answered, with the header.
func (c counts) whole() bool { return c.filtered > 0 && c.failed == 0 && c.unfiltered == 0 }

// load begins to ask. Each answer must have the header with one of the values.
func (f *filters) load(values ...string) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &traffic{}
	var running sync.WaitGroup
	client := &http.Client{Timeout: lab.Deadline, Transport: &http.Transport{DialContext: f.Out.Dial, DisableKeepAlives: true}}
	for range clients {
		running.Go(func() {
			pace := time.NewTicker(each)
			defer pace.Stop()
			for ctx.Err() == nil {
				tr.ask(client, values)
				<-pace.C
			}
		})
	}
	tr.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	f.Cleanup(tr.stop)
	return tr
}

func (tr *traffic) ask(client *http.Client, values []string) {
	status, filtered := 0, false
	resp, err := client.Get(appURL)
	if err == nil {
		status, filtered = resp.StatusCode, slices.Contains(values, resp.Header.Get(header))
		_ = resp.Body.Close()
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	switch {
	case status == http.StatusOK && filtered:
		tr.counts.filtered++
		return
	case status == http.StatusOK:
		tr.counts.unfiltered++
	default:
		tr.counts.failed++
	}
	if tr.counts.first == "" {
		tr.counts.first = fmt.Sprintf("%s, status %d, %v", time.Now().UTC().Format("15:04:05.000"), status, err)
	}
}

func (tr *traffic) now() counts {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.counts
}

// end lets a load go on for a moment, ends it, and says what has become of it.
func (f *filters) end(tr *traffic) counts {
	before := tr.now().filtered
	lab.Eventually(f.T, limit, "the load goes on", func() error {
		if now := tr.now(); now.filtered < before+settled {
			return fmt.Errorf("%v", now)
		}
		return nil
	})
	tr.stop()
	f.Say(tr.now().String())
	return tr.now()
}
