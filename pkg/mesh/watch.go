package mesh

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// quiet is how long the directory must be still before it is read: editors and kubelets change it in bursts.
	quiet = 50 * time.Millisecond
	// impatience is the longest that a burst may put off the reading.
	impatience = 500 * time.Millisecond
	// pollEvery is how often the directory is looked at without an event: one stat, which finds a directory that went,
	// came back, or was replaced (which inotify does not report of a link or a mount above it). A change may take 2 s.
	pollEvery = time.Second
	// rescanEvery is how often all files are looked at without any sign of a change. inotify does not see changes made
	// on another machine of a network file system.
	rescanEvery = 30 * time.Second
)

// watch waits for changes of a directory. It is not safe for concurrent use.
type watch struct {
	path string
	log  *slog.Logger
	fs   *fsnotify.Watcher // nil when the kernel has no watch to give
	seen os.FileInfo       // the directory that fs watches; nil when it watches none
	last time.Time         // when wait last returned
}

func newWatch(path string, log *slog.Logger) *watch {
	w := &watch{path: path, log: log}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		w.log.Warn("no watch on the configuration directory, it is read every second", "directory", path, "error", err)
		w.fs = nil
	}
	w.attach()
	return w
}

// attach puts the watch on the directory that path leads to now, and says whether that is a new one.
func (w *watch) attach() bool {
	now, err := os.Stat(w.path)
	if err != nil {
		gone := w.seen != nil
		w.detach()
		return gone
	}
	if w.fs == nil || (w.seen != nil && os.SameFile(w.seen, now)) {
		return false
	}
	w.detach()
	if err := w.fs.Add(w.path); err != nil {
		return false // polled meanwhile, see wait
	}
	w.seen = now
	return true
}

func (w *watch) detach() {
	if w.seen != nil {
		// The error says that the kernel dropped the watch first, with the directory.
		_ = w.fs.Remove(w.path)
		w.seen = nil
	}
}

func (w *watch) close() {
	if w.fs != nil {
		_ = w.fs.Close() // closes an inotify descriptor; nothing is lost when that fails
	}
}

// note gives the watch up when its directory went away: a new one may have the same inode number, so that attach could
// not tell the two apart.
func (w *watch) note(e fsnotify.Event) {
	if e.Name == w.path && e.Op&(fsnotify.Remove|fsnotify.Rename) != 0 {
		w.detach()
	}
}

// wait returns true when the directory should be read again, false when ctx has ended. soon asks for a reading after
// emptyGrace at the latest; foreign says that there are files whose changes no watch reports.
func (w *watch) wait(ctx context.Context, soon, foreign bool) bool {
	w.last = time.Now()
	if w.seen == nil && w.attach() {
		return true
	}
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w.fs != nil {
		events, errs = w.fs.Events, w.fs.Errors
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var grace <-chan time.Time
	if soon {
		grace = time.After(emptyGrace)
	}
	for {
		select {
		case <-ctx.Done():
			return false
		case <-grace:
			return true
		case e := <-events:
			w.note(e)
			return w.calm(ctx)
		case <-errs: // the queue overflowed: what happened is unknown, so read everything
			return true
		case <-poll.C:
			if w.attach() || w.seen == nil || foreign || time.Since(w.last) >= rescanEvery {
				return true
			}
		}
	}
}

// calm waits out a burst of events; false means that ctx has ended.
func (w *watch) calm(ctx context.Context) bool {
	still := time.NewTimer(quiet)
	defer still.Stop()
	limit := time.NewTimer(impatience)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case e := <-w.fs.Events:
			w.note(e)
			still.Reset(quiet)
		case <-still.C:
			return true
		case <-limit.C:
			return true
		}
	}
}
