package security

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// rescanEvery is how often files are read without any sign of a change: inotify does not see those made on another machine, nor
	// a directory that comes into being.
	rescanEvery = 30 * time.Second
	// maxLinks bounds how many links a path may lead through, the kernel's.
	maxLinks = 40
)

// watch waits for changes of files. It watches their directories: a file is replaced rather than written, and the kubelet replaces the
// link ..data that all of a volume lead through.
type watch struct {
	files  *files
	open   func() (*fsnotify.Watcher, error)
	fs     *fsnotify.Watcher // nil when there is nothing to watch yet, or the kernel has no watch to give
	denied bool              // it has none, which was said
}

func (w *watch) close() {
	if w.fs != nil {
		_ = w.fs.Close() // closes an inotify descriptor; nothing is lost when that fails
	}
}

// run reads files when they change, until ctx ends. Without files it has nothing to wake up for.
func (w *watch) run(ctx context.Context) {
	read := time.NewTimer(rescanEvery)
	read.Stop()
	defer read.Stop()
	near := false // the timer is set to read what has changed
	soon := func() {
		if !near { // a later change does not put it off
			near = true
			read.Reset(w.files.debounce)
		}
	}
	for {
		var events <-chan fsnotify.Event
		var errs <-chan error
		if w.fs != nil {
			events, errs = w.fs.Events, w.fs.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-w.files.asked:
			w.attach()
			soon() // they may have changed since they were read
		case <-events:
			soon()
		case <-errs: // the queue overflowed: what happened is unknown
			w.files.unseen.Add(1)
			soon()
		case <-read.C:
			near = false
			w.attach() // first: what changes from then on is told
			next := rescanEvery
			if w.files.refresh(time.Now()) {
				next = retryEvery
			}
			read.Reset(next)
		}
	}
}

// attach watches the directories that the files are in now.
func (w *watch) attach() {
	if w.fs == nil {
		var err error
		if w.fs, err = w.open(); err != nil {
			w.fs = nil
			if !w.denied {
				w.denied = true
				w.files.unseen.Add(1)
				w.files.log.Warn("no watch on the files of certificates, they are read now and then: raise fs.inotify.max_user_instances of the node", "err", err, "every", rescanEvery)
			}
			return
		}
	}
	wanted := w.files.directories()
	watched := w.fs.WatchList()
	for _, directory := range watched {
		if !slices.Contains(wanted, directory) {
			_ = w.fs.Remove(directory) // fails if the kernel dropped the watch first, with the directory
		}
	}
	for _, directory := range wanted {
		if !slices.Contains(watched, directory) {
			if err := w.fs.Add(directory); err != nil && exists(directory) {
				w.files.unseen.Add(1)
			}
		}
	}
}

// directories are all in which something may change that a file's content depends on.
func (f *files) directories() (all []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.secrets {
		for _, path := range s.paths {
			all = append(all, linked(path)...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// linked are the directory of a file, and those of each link on the way to it.
func linked(path string) (directories []string) {
	for range maxLinks {
		directories = append(directories, filepath.Dir(path))
		link := firstLink(path)
		if link == "" {
			break
		}
		target, err := os.Readlink(link)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(link), target)
		}
		directories = append(directories, filepath.Dir(link))
		path = filepath.Join(target, path[len(link):])
	}
	return directories
}

// firstLink is the first part of a path that is a link; "" if none is.
func firstLink(path string) string {
	for i := 1; i <= len(path); i++ {
		if i < len(path) && path[i] != filepath.Separator {
			continue
		}
		if info, err := os.Lstat(path[:i]); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return path[:i]
		}
	}
	return ""
}
