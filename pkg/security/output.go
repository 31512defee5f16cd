package security

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// rewriteEvery is how long after a failure files are written again: somebody has made room, or the directory.
	rewriteEvery = 30 * time.Second
	// leftover is the age from which a set of files counts as left behind: a reader has long opened all three.
	leftover = time.Minute
	// dataLink and setPrefix are names in the output directory; the dots hide them, as the kubelet's do.
	dataLink, setPrefix = "..data", "..understudy-"
)

// follow calls write at once and whenever Get may say otherwise, and again after a while if that failed, until ctx ends or a
// successor does it.
func (m *Manager) follow(ctx context.Context, write func() error) {
	reason := ""
	for {
		changed := m.Changed()
		var again <-chan time.Time
		err := write()
		if err != nil {
			again = time.After(rewriteEvery)
			if err.Error() != reason {
				m.log.Error("the certificate is not written", "err", err, "retry", rewriteEvery)
			}
			reason = err.Error()
		} else {
			reason = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-m.retired:
			return
		case <-changed:
		case <-again:
		}
	}
}

// output writes the workload's certificate, its key and the roots for others than Envoy, as one set: whoever opens the three files sees
// those before or those after. They are links by way of a link that is replaced, as in a volume of the kubelet's.
func (m *Manager) output() error {
	workload, err := m.Get(Workload)
	if err != nil {
		return nil // none yet
	}
	roots, err := m.Get(Roots)
	if err != nil {
		return nil
	}
	set := map[string][]byte{KeyFile: workload.Key, ChainFile: workload.Chain, RootFile: roots.Roots}
	directory, mode := m.c.Output, m.c.OutputMode
	if holds(directory, set) {
		return nil
	}
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return fmt.Errorf("OUTPUT_CERTS: %w", err)
	}
	name, err := writeSet(directory, mode, set)
	if err == nil {
		err = relink(directory, dataLink, name)
	}
	for file := range set {
		if err == nil {
			err = relink(directory, file, filepath.Join(dataLink, file))
		}
	}
	if err != nil {
		return fmt.Errorf("OUTPUT_CERTS %s: %w", directory, err)
	}
	return removeSets(directory, name, time.Now())
}

// holds says whether a directory has files with these contents.
func holds(directory string, set map[string][]byte) bool {
	for name, content := range set {
		if now, err := readFile(filepath.Join(directory, name)); err != nil || !bytes.Equal(now, content) {
			return false
		}
	}
	return true
}

// writeSet writes files into a new directory in another, and returns its name.
func writeSet(directory string, mode fs.FileMode, set map[string][]byte) (string, error) {
	path, err := newDirectory(directory)
	if err != nil {
		return "", err
	}
	for name, content := range set {
		file := filepath.Join(path, name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			return "", errors.Join(err, os.RemoveAll(path))
		}
		if err := os.Chmod(file, mode); err != nil { // whatever the umask is
			return "", errors.Join(err, os.RemoveAll(path))
		}
	}
	if mode&0o077 != 0 {
		if err := os.Chmod(path, 0o755); err != nil {
			return "", errors.Join(err, os.RemoveAll(path))
		}
	}
	return filepath.Base(path), nil
}

// newDirectory makes a directory in another, for the owner alone. Its error is the same each time: the name would differ.
func newDirectory(directory string) (string, error) {
	path, err := os.MkdirTemp(directory, setPrefix)
	var failed *fs.PathError
	if errors.As(err, &failed) {
		err = fmt.Errorf("make a directory there: %w", failed.Err)
	}
	return path, err
}

// relink has a name in a directory lead to a target from now on, whatever it was.
func relink(directory, name, target string) error {
	path := filepath.Join(directory, name)
	if now, err := os.Readlink(path); err == nil && now == target {
		return nil
	}
	// The new link is in a directory of its own until it is renamed: two generations may be at it.
	between, err := newDirectory(directory)
	if err != nil {
		return err
	}
	link := filepath.Join(between, name)
	if err = os.Symlink(target, link); err == nil {
		err = os.Rename(link, path)
	}
	return errors.Join(err, os.RemoveAll(between))
}

// removeSets removes sets that nothing leads to any more.
func removeSets(directory, but string, now time.Time) error {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == but || !strings.HasPrefix(e.Name(), setPrefix) {
			continue
		}
		info, err := e.Info()
		if err != nil || now.Sub(info.ModTime()) < leftover {
			continue // it is gone, or in use
		}
		if err := os.RemoveAll(filepath.Join(directory, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
