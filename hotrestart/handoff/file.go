package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxFile bounds what a newcomer takes as a file: the largest configuration that an agent takes from its control plane.
const maxFile = 256 << 20

// Files are components of a generation's state that are too large to be read and written whole, by name. They travel as
// descriptors, to a newcomer that takes them.
type Files map[string]*os.File

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
func (f Files) Open(component string) io.Reader {
	file := f[component]
	if file == nil {
		return nil
	}
	return io.NewSectionReader(file, 0, maxFile) // its offset is shared with others
}

// sendFiles writes those of files that the newcomer takes.
func sendFiles(l *link, files Files, takes func(string) bool) (sent int, err error) {
	for component, file := range files {
		if !takes(component) {
			continue
		}
		f, err := newFrame(msgState, stateHead{component})
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
func (r *stateReader) addFile(component string, f frame) error {
	if len(f.fds) != 1 || len(f.body) > 0 || r.state[component] != nil || r.files[component] != nil {
		f.closeDescriptors()
		return fmt.Errorf("read state of %s: want one descriptor, once, or bytes", component)
	}
	file := os.NewFile(uintptr(f.fds[0]), component)
	if err := checkFile(file); err != nil {
		return errors.Join(fmt.Errorf("read state of %s: %w", component, err), file.Close())
	}
	if r.files == nil {
		r.files = Files{}
	}
	r.files[component] = file
	return nil
}
