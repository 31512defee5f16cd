package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Watch follows one generation: its role now, each later one, and its end, which the
// kernel tells as soon as the process is gone.
type Watch struct {
	link    *link
	reports chan Report
	err     error
}

// Watch begins to follow the generation; ctx is for connecting only. The error wraps
// ErrLost when nobody listens there.
func (d *Dir) Watch(ctx context.Context, id string) (*Watch, error) {
	l, err := d.inquire(ctx, id, true)
	if err != nil {
		return nil, err
	}
	w := &Watch{link: l, reports: make(chan Report)}
	go w.run()
	return w, nil
}

// Reports gives the present report first. It is closed when the generation ends or
// breaks off, or by Close.
func (w *Watch) Reports() <-chan Report { return w.reports }

// Err says why Reports was closed; call it only then.
func (w *Watch) Err() error { return w.err }

// Close ends the watch, and returns when nothing of it is left.
func (w *Watch) Close() {
	w.link.close()
	for range w.reports { // until run has ended
	}
}

func (w *Watch) run() {
	defer close(w.reports)
	for f := range w.link.frames {
		f.closeDescriptors()
		if f.kind != msgReport {
			continue // of a later release: not for us
		}
		report, err := decodeHead[Report](f)
		if err != nil {
			w.err = err
			return
		}
		select {
		case w.reports <- report:
		case <-w.link.closed:
			w.err = ErrLost
			return
		}
	}
	w.err = w.link.err
}

// inquire connects and asks.
func (d *Dir) inquire(ctx context.Context, id string, follow bool) (*link, error) {
	conn, err := d.connect(ctx, id)
	if err != nil {
		return nil, err
	}
	l := newLink(conn, defaultTiming(), ownProtocols().min, nil)
	if err := l.send(msgInquire, inquireHead{Follow: follow}); err != nil {
		l.close()
		return nil, fmt.Errorf("ask generation %s: %w", id, err)
	}
	return l, nil
}

// ask is one question for a report. A generation that breaks off without an answer is
// asked again: others push the silent out before they are heard, see Server.admit, and
// the next connection tells whether it was its end.
func (d *Dir) ask(ctx context.Context, id string) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for {
		r, err := d.askOnce(ctx, id)
		if !errors.Is(err, ErrLost) || errors.Is(err, errNobodyListens) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return Report{}, err
		case <-time.After(backlogPause):
		}
	}
}

func (d *Dir) askOnce(ctx context.Context, id string) (Report, error) {
	l, err := d.inquire(ctx, id, false)
	if err != nil {
		return Report{}, err
	}
	defer l.close()
	select {
	case f, ok := <-l.frames:
		if !ok {
			return Report{}, fmt.Errorf("ask generation %s: %w", id, l.err)
		}
		f.closeDescriptors()
		if f.kind != msgReport {
			return Report{}, fmt.Errorf("ask generation %s: it answers with %s", id, f.kind)
		}
		return decodeHead[Report](f)
	case <-ctx.Done():
		return Report{}, fmt.Errorf("ask generation %s for its role: %w", id, ctx.Err())
	}
}
