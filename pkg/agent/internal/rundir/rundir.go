// Package rundir owns the files of one life of the agent: a directory of its own below
// configPath, which two containers of a pod may share. Its lock tells a later generation
// whether this one still lives.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.mesh/internal/unixsock"
)

const (
	generationPrefix = "gen-"
	lockFile         = "lock"
	// lockGrace is far longer than the instant between making a directory and locking it.
	lockGrace = time.Minute
)

// Dir is the directory of one generation.
type Dir struct {
	dir   string
	lock  *os.File
	links map[string]string // to sockets of the directory, by the link's path
}

// New makes a fresh directory, named after id, below configPath, which it creates when
// it is missing, and removes those that dead generations left behind.
func New(configPath, id string, log *slog.Logger) (*Dir, error) {
	if err := os.MkdirAll(configPath, 0o755); err != nil {
		return nil, fmt.Errorf("make configPath %s (it must be writable; set PROXY_CONFIG configPath): %w", configPath, err)
	}
	removeDeadGenerations(configPath, log)
	d := &Dir{}
	var err error
	// Istio's default is relative, and Envoy's hot restart takes only absolute paths.
	if d.dir, err = filepath.Abs(filepath.Join(configPath, generationPrefix+id)); err != nil {
		return nil, fmt.Errorf("make configPath %s absolute: %w", configPath, err)
	}
	if err := unixsock.CheckPath(d.AdminSocket()); err != nil { // the longest
		return nil, fmt.Errorf("configPath %s: %w", configPath, err)
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make this generation's directory (configPath must be writable for uid %d): %w", os.Geteuid(), err)
	}
	if d.lock, err = lockDirectory(d.dir); err != nil {
		os.RemoveAll(d.dir)
		return nil, fmt.Errorf("lock this generation's directory %s: %w", d.dir, err)
	}
	return d, nil
}

// lockDirectory makes the lock of dir. It has its name only once it is held: another
// agent that starts at this moment would take one that is not for a dead generation's.
func lockDirectory(dir string) (*os.File, error) {
	unnamed := filepath.Join(dir, lockFile+".new")
	lock, err := os.OpenFile(unnamed, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		err = os.Rename(unnamed, filepath.Join(dir, lockFile))
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// BootstrapFile is where Envoy finds its bootstrap.
func (d *Dir) BootstrapFile() string { return filepath.Join(d.dir, "envoy.pb") }

// TrialDir is where configurations lie while an Envoy tries them; whoever needs it makes it.
func (d *Dir) TrialDir() string { return filepath.Join(d.dir, "trial") }

// AdminSocket is where Envoy serves its admin API.
func (d *Dir) AdminSocket() string { return filepath.Join(d.dir, "admin.sock") }

// HotRestartSockets is where the paths of the sockets between agent and Envoy begin.
func (d *Dir) HotRestartSockets() string { return filepath.Join(d.dir, "hr") }

// XDSSocket is where Envoy gets its resources.
func (d *Dir) XDSSocket() string { return filepath.Join(d.dir, "xds.sock") }

// SDSSocket is where Envoy gets its secrets. It is not where Istio has it: there the next generation would take it for
// another's.
func (d *Dir) SDSSocket() string { return filepath.Join(d.dir, "sds.sock") }

// clientsSocket is where xDS clients other than Envoy are served.
func (d *Dir) clientsSocket() string { return filepath.Join(d.dir, "apps.sock") }

// ListenXDS binds the socket from which this generation's Envoy gets its resources.
func (d *Dir) ListenXDS() (net.Listener, error) { return listen("XDS", d.XDSSocket()) }

// ListenClients binds the socket at which xDS clients other than Envoy are served.
func (d *Dir) ListenClients() (net.Listener, error) { return listen("clients' XDS", d.clientsSocket()) }

// ListenSDS binds the socket from which this generation's Envoy gets its secrets.
func (d *Dir) ListenSDS() (net.Listener, error) { return listen("SDS", d.SDSSocket()) }

// listen binds a socket in the directory, which is 0700; the socket is 0600.
func listen(what, path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("bind the %s socket: %w", what, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("restrict the %s socket: %w", what, err)
	}
	return l, nil
}

// Where Istio's agent has its sockets, the one below configPath, the other below the working directory.
const (
	istioXDS = "XDS"
	istioSDS = "./var/run/secrets/workload-spiffe-uds/socket"
)

// LinkXDS makes the XDS socket be where Istio's is, for a bootstrap that is not the agent's.
func (d *Dir) LinkXDS() error { return d.linkXDS(d.XDSSocket()) }

// LinkClients makes the socket of other clients than Envoy be where Istio's is.
func (d *Dir) LinkClients() error { return d.linkXDS(d.clientsSocket()) }

// linkXDS makes a link that is good in every container that has configPath, wherever that is mounted there.
func (d *Dir) linkXDS(socket string) error {
	if err := d.link(filepath.Join(filepath.Base(d.dir), filepath.Base(socket)), filepath.Join(filepath.Dir(d.dir), istioXDS)); err != nil {
		return fmt.Errorf("link the XDS socket: %w", err)
	}
	return nil
}

// LinkSDS makes the SDS socket be where Istio's is, for the same.
func (d *Dir) LinkSDS() error {
	link, err := filepath.Abs(istioSDS)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(link), 0o755)
	}
	if err == nil {
		err = d.link(d.SDSSocket(), link)
	}
	if err != nil {
		return fmt.Errorf("link the SDS socket: %w", err)
	}
	return nil
}

// link puts a link to one of the directory's sockets at a path, in place of what is there.
func (d *Dir) link(socket, path string) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(socket, fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, path); err != nil {
		return err
	}
	if d.links == nil {
		d.links = make(map[string]string)
	}
	d.links[path] = socket
	return nil
}

// Remove deletes everything the generation put on disk.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.dir)
	for link, socket := range d.links {
		if target, readErr := os.Readlink(link); readErr == nil && target == socket { // no later generation's
			err = errors.Join(err, os.Remove(link))
		}
	}
	d.lock.Close()
	return err
}

// removeDeadGenerations deletes the directories whose owner holds its lock no
// more: a killed agent cannot clean up after itself.
func removeDeadGenerations(configPath string, log *slog.Logger) {
	entries, err := os.ReadDir(configPath)
	if err != nil {
		return // the directory was just made; what is wrong with it shows at the next step
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), generationPrefix) {
			continue
		}
		dir := filepath.Join(configPath, e.Name())
		if alive(dir) {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			log.Warn("leftover of a dead generation stays", "dir", dir, "err", err)
		}
	}
}

// alive tells whether the lock in dir is held, or cannot be judged. A directory
// without a lock belongs to a generation that is just being made, unless it is old.
func alive(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR, 0)
	if os.IsNotExist(err) {
		made, statErr := os.Stat(dir)
		return statErr == nil && time.Since(made.ModTime()) < lockGrace
	}
	if err != nil {
		return true
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}
