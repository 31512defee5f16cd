// Package atomicfile owns how a file is replaced: whoever reads it, another agent that shares its directory included, sees it as it
// was or as it is, and whole.
package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// abandoned is the age at which a file beside another one that Replace was writing is taken for that of a process that was killed.
	abandoned = 10 * time.Minute
	// rate is how many bytes a second are written at most in the long run, see Rest.
	rate = 128 << 10
)

// Replace puts what write writes in place of the file at path, for the owner alone, and says which file that is. What fails leaves the
// file as it was, and nothing beside it. Nothing is synced to disk: a node that crashes ends the pod.
func Replace(path string, write func(io.Writer) error) (info os.FileInfo, err error) {
	sweep(path)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // its mode is 0600
	if err != nil {
		return nil, err
	}
	if err = write(f); err == nil {
		info, err = f.Stat()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // it is of no use
		return nil, err
	}
	return info, nil
}

// Unnamed is an empty file for the owner alone on the volume of path, which is gone when nobody has it open any more.
func Unnamed(path string) (*os.File, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // Replace sweeps it up if this process is killed now
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what killed processes have left of theirs beside the file at path.
func sweep(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return // what is written next says so
	}
	for _, e := range entries {
		number, is := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if info, err := e.Info(); is && strings.Trim(number, "0123456789") == "" && err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > abandoned {
			_ = os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

// Read reads a regular file of at most so many bytes.
func Read(path string, most int64) ([]byte, error) {
	f, info, err := Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), most)
	}
	data := make([]byte, info.Size())
	_, err = io.ReadFull(f, data)
	return data, err
}

// Open opens a regular file to be read, and says which it is.
func Open(path string) (*os.File, os.FileInfo, error) {
	// Not blocking: a FIFO of that name must not stop whoever reads.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// Rest is how long a file that is written as a whole each time is left alone after so many bytes. There is one for each pod of a node: in a
// mesh in which something changes all the time, it is the disk that would have to bear it.
func Rest(size int64) time.Duration {
	return time.Duration(float64(size) / rate * float64(time.Second))
}
