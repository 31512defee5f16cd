package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	ownDirectoryPrefix = "understudy-"
	ownDirectoryMode   = 0o700
	generationMode     = 0o600

	lockSuffix   = ".lock"
	socketSuffix = ".sock"
	// newPrefix begins the name of a lock file that is being made.
	newPrefix = ".new-"
	// newGrace is far longer than the instant between making a lock file and locking it.
	newGrace = time.Minute
	// lookTimeout bounds the questions about a generation's role; a live one answers from
	// a goroutine of its own.
	lookTimeout = 2 * time.Second
	// backlogPause is the time between two attempts to reach a generation whose backlog is full, or that broke off.
	backlogPause = 10 * time.Millisecond
)

// Dir is the place where the generations of one pod meet: a directory of this user's
// own below the hand-off directory. Each living generation has two files there:
// <id>.lock, on which it holds flock(2), and <id>.sock, on which its Server listens.
//
// The socket is bound and connected to through /proc/self/fd/<n>/: so the hand-off
// directory's path may be of any length (a sockaddr_un takes 107 bytes), and what was
// checked is what is used, whatever happens to the path meanwhile.
type Dir struct {
	path string
	me   Identity
	file *os.File
}

// OpenDir opens this user's own directory in the hand-off directory at path, and makes
// it when it is not there. path may belong to anybody and be open to all, such as an
// emptyDir (0777, or 2777 with fsGroup). The own directory must be a directory, no
// link, and belong to this uid; a mode that lets others in (fsGroup sets one) is corrected.
// me is the generation that will use it. The caller closes the Dir.
func OpenDir(path string, me Identity) (*Dir, error) {
	if err := me.validate(); err != nil {
		return nil, fmt.Errorf("open hand-off directory %s: %w", path, err)
	}
	own := filepath.Join(path, ownDirectoryPrefix+fmt.Sprint(os.Geteuid()))
	if err := os.Mkdir(own, ownDirectoryMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make a directory in the hand-off directory (--handoffDir must be a directory, shared by both containers, "+
			"in which uid %d may write): %w", os.Geteuid(), err)
	}
	file, err := openOwn(own)
	if err != nil {
		return nil, err
	}
	return &Dir{path: own, me: me, file: file}, nil
}

// openOwn opens and checks the agent's own directory.
func openOwn(path string) (*os.File, error) {
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if err := checkOwn(path, &stat); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open the agent's own hand-off directory: %w", err)
	}
	// Check again what was opened: the path may lead elsewhere since.
	err = onDescriptor(file, func(fd int) error { return unix.Fstat(fd, &stat) })
	if err == nil {
		err = checkOwn(path, &stat)
	}
	if err == nil && stat.Mode&0o077 != 0 {
		if err = file.Chmod(ownDirectoryMode); err != nil {
			err = fmt.Errorf("close %s, mode %04o, to others: %w", path, stat.Mode&0o7777, err)
		}
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

func checkOwn(path string, stat *unix.Stat_t) error {
	switch {
	case stat.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%s is no directory (mode %#o): somebody else made it; remove it", path, stat.Mode)
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to uid %d, not to %d: somebody else made it; remove it", path, stat.Uid, os.Geteuid())
	}
	return nil
}

// onDescriptor calls f with the descriptor of file, which stays as it is.
func onDescriptor(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Close closes the directory; servers, clients and watches go on.
func (d *Dir) Close() error { return d.file.Close() }

// Generations lists the other generations that live: they hold their lock. Whether one
// answers, Look tells. Files of dead ones are removed on the way.
func (d *Dir) Generations() ([]string, error) {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return nil, fmt.Errorf("list the hand-off directory: %w", err)
	}
	var live []string
	for _, e := range entries {
		name := e.Name()
		id, isLock := strings.CutSuffix(name, lockSuffix)
		switch {
		case strings.HasPrefix(name, newPrefix):
			d.removeAbandoned(name)
		case isLock && validateID(id) == nil && id != d.me.ID:
			if d.locked(name) {
				live = append(live, id)
			} else {
				d.remove(id)
			}
		}
	}
	for _, e := range entries { // a socket without a lock: its owner died between removing the one and the other
		id, isSocket := strings.CutSuffix(e.Name(), socketSuffix)
		if isSocket && id != d.me.ID && !slices.Contains(live, id) && !d.locked(id+lockSuffix) {
			d.remove(id)
		}
	}
	return live, nil
}

// Neighbour is another generation, as it was found.
type Neighbour struct {
	ID string
	// Report is what it answered; Err why it did not.
	Report Report
	Err    error
}

// Look asks every other living generation for its role, all at once; each has 2 s.
func (d *Dir) Look(ctx context.Context) ([]Neighbour, error) {
	ids, err := d.Generations()
	if err != nil {
		return nil, err
	}
	found := make([]Neighbour, len(ids))
	var asking sync.WaitGroup
	for i, id := range ids {
		asking.Go(func() {
			found[i].ID = id
			found[i].Report, found[i].Err = d.ask(ctx, id)
		})
	}
	asking.Wait()
	return found, nil
}

// errNobodyListens is how a generation's end shows when it is connected to.
var errNobodyListens = fmt.Errorf("nobody listens: %w", ErrLost)

// connect connects to the generation's server, and makes sure that it is this user's.
// The error wraps ErrLost when nobody listens.
func (d *Dir) connect(ctx context.Context, id string) (*net.UnixConn, error) {
	if err := validateID(id); err != nil {
		return nil, err
	}
	path, err := d.viaDescriptor(id + socketSuffix)
	if err != nil {
		return nil, err
	}
	c, err := dialPatiently(ctx, path)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("connect to generation %s: %w", id, errNobodyListens)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to generation %s in %s: %w", id, d.path, err)
	}
	conn := c.(*net.UnixConn)
	if err := checkPeer(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to generation %s: %w", id, err)
	}
	return conn, nil
}

// dialPatiently connects, and waits as long as the backlog of a living generation is full
// (EAGAIN, unix(7)): taking it for dead would start a second one beside it.
func dialPatiently(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	for {
		c, err := dialer.DialContext(ctx, "unix", path)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(err, ctx.Err())
		case <-time.After(backlogPause):
		}
	}
}

// viaDescriptor is a short path to a file of the directory, valid while it is open.
func (d *Dir) viaDescriptor(name string) (path string, err error) {
	err = onDescriptor(d.file, func(fd int) error {
		path = fmt.Sprintf("/proc/self/fd/%d/%s", fd, name)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("use the hand-off directory %s: %w", d.path, err)
	}
	return path, nil
}

// openAt opens a plain file of the directory.
func (d *Dir) openAt(name string, flags int) (*os.File, error) {
	var fd int
	err := onDescriptor(d.file, func(dir int) (err error) {
		fd, err = unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, generationMode)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// locked tells whether somebody holds the lock file; one that cannot be opened counts
// as held. It tries a shared lock, so that two that ask at once do not find each other's.
func (d *Dir) locked(name string) bool {
	file, err := d.openAt(name, unix.O_RDONLY)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer file.Close()
	return onDescriptor(file, func(fd int) error { return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) }) != nil
}

// remove deletes a generation's files, the lock last: as long as it is there, it says
// whose socket that is.
func (d *Dir) remove(id string) error {
	return errors.Join(d.unlink(id+socketSuffix), d.unlink(id+lockSuffix))
}

// removeAbandoned deletes a lock file whose maker died before it was locked.
func (d *Dir) removeAbandoned(name string) {
	info, err := os.Lstat(filepath.Join(d.path, name))
	if err == nil && time.Since(info.ModTime()) > newGrace && !d.locked(name) {
		d.unlink(name) // an error does no harm: the next call tries again
	}
}

func (d *Dir) unlink(name string) error {
	err := onDescriptor(d.file, func(dir int) error { return unix.Unlinkat(dir, name, 0) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "unlink", Path: filepath.Join(d.path, name), Err: err}
	}
	return nil
}

// place is this generation's presence in the directory.
type place struct {
	dir      *Dir
	lock     *os.File
	listener *net.UnixListener
}

// take makes this generation known: the lock first, so that nobody removes the socket
// before it listens.
func (d *Dir) take() (_ *place, err error) {
	p := &place{dir: d}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("take a place in the hand-off directory %s: %w", d.path, err), p.leave())
		}
	}()
	temporary := newPrefix + d.me.ID
	if p.lock, err = d.openAt(temporary, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL); err != nil {
		return nil, err
	}
	err = onDescriptor(p.lock, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil { // link(2), for rename(2) would replace the file of an ID that is in use
		err = onDescriptor(d.file, func(dir int) error {
			return unix.Linkat(dir, temporary, dir, d.me.ID+lockSuffix, 0)
		})
	}
	linkErr := d.unlink(temporary)
	if err != nil {
		p.lock.Close()
		p.lock = nil // the files of this ID are not ours
		return nil, fmt.Errorf("lock generation %s: %w", d.me.ID, err)
	}
	if linkErr != nil {
		return nil, linkErr
	}
	path, err := d.viaDescriptor(d.me.ID + socketSuffix)
	if err != nil {
		return nil, err
	}
	if p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
		return nil, err
	}
	p.listener.SetUnlinkOnClose(false) // leave removes it, before the lock
	return p, os.Chmod(path, generationMode)
}

// leave gives the place up; its connections live on.
func (p *place) leave() error {
	if p.lock == nil {
		return nil
	}
	var err error
	if p.listener != nil {
		if err = p.listener.Close(); errors.Is(err, net.ErrClosed) { // by the end of Run
			err = nil
		}
	}
	return errors.Join(err, p.dir.remove(p.dir.me.ID), p.lock.Close())
}
