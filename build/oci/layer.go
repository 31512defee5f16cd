package oci

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// blob is a compressed layer in a file. It is a partial.CompressedLayer that knows its DiffID.
type blob struct {
	file           string
	digest, diffID v1.Hash
	size           int64
}

func (b blob) Digest() (v1.Hash, error)            { return b.digest, nil }
func (b blob) DiffID() (v1.Hash, error)            { return b.diffID, nil }
func (b blob) Size() (int64, error)                { return b.size, nil }
func (b blob) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (b blob) Compressed() (io.ReadCloser, error)  { return os.Open(b.file) }

// compress makes a layer of files that are in order. Compressing takes seconds for an Envoy, so a layer is kept in the
// directory cache under the digest of its tar, which is quick to compute, and the release of Go that compressed it:
// another one may write other bytes.
func compress(entries []File, cache string) (v1.Layer, error) {
	hash := sha256.New()
	if err := writeTar(hash, entries); err != nil {
		return nil, err
	}
	diffID := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}
	file := filepath.Join(cache, runtime.Version(), diffID.Hex+".tar.gz")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		if err := writeCompressed(file, entries, diffID); err != nil {
			return nil, fmt.Errorf("compress into %s: %w", file, err)
		}
	}
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	digest, size, err := v1.SHA256(opened)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return partial.CompressedToLayer(blob{file: file, digest: digest, diffID: diffID, size: size})
}

// writeCompressed makes the whole file or none.
func writeCompressed(file string, entries []File, want v1.Hash) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	temporary, err := os.CreateTemp(filepath.Dir(file), "layer-*")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, temporary.Close())
		if err == nil {
			err = os.Rename(temporary.Name(), file)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(temporary.Name()))
		}
	}()
	// gzip rather than zstd: every engine and registry takes it.
	compressor, err := gzip.NewWriterLevel(temporary, gzip.BestCompression)
	if err != nil {
		return err
	}
	hash := sha256.New()
	if err := writeTar(io.MultiWriter(hash, compressor), entries); err != nil {
		return err
	}
	if got := hex.EncodeToString(hash.Sum(nil)); got != want.Hex {
		return errors.New("one of its files has changed meanwhile")
	}
	return compressor.Close()
}

// writeTar writes files in the form of a layer. Every file is from 1970: their real times say when they were built or
// downloaded, and would make another layer of the same files.
func writeTar(to io.Writer, entries []File) error {
	w := tar.NewWriter(to)
	for _, f := range entries {
		if err := writeEntry(w, f); err != nil {
			return fmt.Errorf("file %s: %w", f.Path, err)
		}
	}
	return w.Close()
}

func writeEntry(w *tar.Writer, f File) error {
	header := &tar.Header{
		Name:     strings.TrimPrefix(f.Path, "/"),
		Mode:     permissions(f.Mode),
		Uid:      f.UID,
		Gid:      f.GID,
		ModTime:  time.Unix(0, 0),
		Typeflag: tar.TypeReg,
	}
	switch f.Mode.Type() {
	case fs.ModeDir:
		header.Typeflag = tar.TypeDir
		header.Name += "/"
	case fs.ModeSymlink:
		header.Typeflag = tar.TypeSymlink
		header.Linkname = f.Link
		header.Mode = 0o777 // what every symbolic link has
	default:
		content, size, err := f.open()
		if err != nil {
			return err
		}
		defer content.Close()
		header.Size = size
		if err := w.WriteHeader(header); err != nil {
			return err
		}
		_, err = io.Copy(w, content)
		return err
	}
	return w.WriteHeader(header)
}

// permissions are the twelve bits that a tar has.
func permissions(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	for bit, flag := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}
