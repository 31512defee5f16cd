package handoff

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds what a newcomer takes as a file: the largest configuration that an agent takes from its control plane.
	maxFile = 256 << 20
	// maxFiles bounds how many there are: descriptors on their way count against the limit of open files of whoever sends them, and those
	// that have come against that of whoever takes them.
	maxFiles = 256
)

// Files are components of a generation's state that are too large to be read and written whole, by name, or parts of them, by COMPONENT/PART. They
// travel as descriptors, to a newcomer that takes the component.
type Files map[string]*os.File

// componentOf is the one that a file of a name belongs to.
func componentOf(name string) string {
	of, _, _ := strings.Cut(name, "/")
	return of
}

// Fit closes and leaves out of f what a newcomer would not take: what is no regular file, or larger than 256 MiB, and of more than 256 the last ones
// in the order of their names. It returns why, by name.
func (f Files) Fit() map[string]error {
	gone := map[string]error{}
	for i, name := range slices.Sorted(maps.Keys(f)) {
		err := errors.Join(checkName(name), checkFile(f[name]))
		if err == nil && i-len(gone) >= maxFiles {
			err = fmt.Errorf("more than %d files", maxFiles)
		}
		if err != nil {
			gone[name] = errors.Join(err, f[name].Close())
			delete(f, name)
		}
	}
	return gone
}

// Close closes them.
func (f Files) Close() {
	for _, file := range f {
		file.Close() // of memory, or read: nothing can be lost
	}
}

// NewFile returns a file in memory (memfd_create(2)) of what write writes, at most 256 MiB. Nobody can change it any more.
func NewFile(component string, write func(io.Writer) error) (*os.File, error) {
	fd, err := unix.MemfdCreate("understudy-"+component, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("hand over %s: %w", component, os.NewSyscallError("memfd_create", err))
	}
	file := os.NewFile(uintptr(fd), component)
	err = write(file)
	if err == nil {
		err = checkFile(file)
	}
	if err == nil {
		_, err = unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("hand over %s: %w", component, err), file.Close())
	}
	return file, nil
}

func checkFile(file *os.File) error {
	info, err := file.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > maxFile) {
		err = fmt.Errorf("a file of mode %s and %d bytes, want a regular one of at most %d", info.Mode(), info.Size(), maxFile)
	}
	return err
}

// Open returns a component, to be read from its start; nil: there is none of that name.
func (f Files) Open(name string) io.Reader {
	file := f[name]
	if file == nil {
		return nil
	}
	return io.NewSectionReader(file, 0, maxFile) // its offset is shared with others
}

// Parts are the parts of a component, each to be read from its start.
func (f Files) Parts(component string) map[string]io.Reader {
	parts := map[string]io.Reader{}
	for name := range f {
		if part, is := strings.CutPrefix(name, component+"/"); is {
			parts[part] = f.Open(name)
		}
	}
	return parts
}

// sendFiles writes those of files that the newcomer takes.
func sendFiles(l *link, files Files, takes func(string) bool) (sent int, err error) {
	for name, file := range files {
		if !takes(componentOf(name)) {
			continue
		}
		f, err := newFrame(msgState, stateHead{name})
		if err != nil {
			return sent, err
		}
		f.fds = []int{int(file.Fd())}
		if err := l.sendFrame(f); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

// addFile takes the descriptor of f over, also when it fails.
func (r *stateReader) addFile(name string, f frame) error {
	if len(f.fds) != 1 || len(f.body) > 0 || r.state[name] != nil || r.files[name] != nil {
		f.closeDescriptors()
		return fmt.Errorf("read state of %s: want one descriptor, once, or bytes", name)
	}
	if len(r.files) >= maxFiles {
		f.closeDescriptors()
		return fmt.Errorf("read state of %s: more than %d files", name, maxFiles)
	}
	file := os.NewFile(uintptr(f.fds[0]), name)
	if err := checkFile(file); err != nil {
		return errors.Join(fmt.Errorf("read state of %s: %w", name, err), file.Close())
	}
	if r.files == nil {
		r.files = Files{}
	}
	r.files[name] = file
	return nil
}
