package mesh

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stamp tells whether a file is still the one that was read, without reading it.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// stampStep is how shortly after a change another one could leave the same stamp: the kernel's clock for file times
// advances in steps of up to 10 ms, that of network file systems in seconds.
const stampStep = 2 * time.Second

// youngerThan says whether the file changed less than age before now.
func (s stamp) youngerThan(age time.Duration, now time.Time) bool {
	return now.Sub(time.Unix(s.ctime.Unix())).Abs() < age
}

// configName says whether a directory entry is a configuration file by its name. Names that begin with a dot are
// editors' and Kubernetes' own (..data).
func configName(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}

// statFile identifies the file that path leads to. It is an error when that is not a regular file of at most max
// bytes, so that no FIFO blocks the reader and no huge file fills the memory.
func statFile(path string, max int64) (stamp, error) {
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return stamp{}, plainError(err)
	}
	return checkStat(&st, max)
}

func checkStat(st *unix.Stat_t, max int64) (stamp, error) {
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG {
		return stamp{}, fmt.Errorf("is a %s, should be a regular file", kindName(kind))
	}
	if st.Size > max {
		return stamp{}, fmt.Errorf("has %d bytes, at most %d are read; split it into several files", st.Size, max)
	}
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func kindName(mode uint32) string {
	switch mode {
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// readFile reads the file that path leads to, under the rules of statFile; they are applied again to what was opened,
// which may be another file by then.
func readFile(path string, max int64) ([]byte, stamp, error) {
	// O_NONBLOCK: opening a FIFO for reading must not wait for a writer, open(2).
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, stamp{}, plainError(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := ignoringEINTR(func() error { return unix.Fstat(int(f.Fd()), &st) }); err != nil {
		return nil, stamp{}, plainError(err)
	}
	id, err := checkStat(&st, max)
	if err != nil {
		return nil, stamp{}, err
	}
	data := make([]byte, 0, st.Size+1) // the one byte more shows a file that grew
	for {
		n, err := f.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) {
			return data, id, nil
		}
		if err != nil {
			return nil, stamp{}, plainError(err)
		}
		if len(data) == cap(data) {
			return nil, stamp{}, errors.New("grew while it was read")
		}
	}
}

// plainError is err without the path, which every caller's message has already.
func plainError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Errorf("cannot be read: %w", err)
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
