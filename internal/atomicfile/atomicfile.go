// Package atomicfile owns how a file is replaced: whoever reads it, another agent that shares its directory included, sees it as it
// was or as it is, and whole.
package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
)

// Replace puts what write writes in place of the file at path, for the owner alone, and says which file that is. What fails leaves the
// file as it was, and nothing beside it. Nothing is synced to disk: a node that crashes ends the pod.
func Replace(path string, write func(io.Writer) error) (info os.FileInfo, err error) {
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
