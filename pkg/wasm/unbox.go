package wasm

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"understudy.mesh/pkg/wasm/internal/frame"
)

const (
	// maxBoxes is how many archives may be around a module: a .tar.gz is two.
	maxBoxes = 2
	// maxRatio bounds how much more comes out of a box than went in. Modules shrink to a fifth, and tar's padding to nothing.
	maxRatio = 200
	// ratioFloor is below what size a ratio says nothing: the 10 KiB of padding in a small archive.
	ratioFloor = 1 << 20
	// pluginFile is the name of the module in an image, by the specification of Wasm images for proxies.
	pluginFile = "plugin.wasm"
	// tarMagicAt and tarBlock are of the form of tar's headers.
	tarMagicAt, tarBlock = 257, 512
)

// errTooLarge is a module that is beyond the limit, on the way or unpacked.
type tooLargeError struct {
	what  string
	limit int64
}

func (e *tooLargeError) Error() string {
	return fmt.Sprintf("%s more than %d bytes: ISTIO_WASM_MAX_BINARY_SIZE_BYTES", e.what, e.limit)
}

// boxed is what was fetched, of which a module is read that may be in boxes.
type boxed struct {
	io.Reader             // of the module
	rest      []io.Reader // of each box, the innermost first
	archive   *tar.Reader
}

// unbox finds the module in what is fetched: that itself, or what is within gzip and tar. Nothing is allocated by a size that a header
// states, and nothing extracted by a name.
func unbox(in io.Reader, limit int64) (*boxed, error) {
	wire := &counter{in: in, limit: limit, what: "what is fetched has"}
	b := &boxed{Reader: wire}
	for boxes := 0; ; boxes++ {
		window := bufio.NewReaderSize(b.Reader, tarBlock)
		head, err := window.Peek(tarBlock)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		b.Reader = window
		kind := boxOf(head)
		if kind == "" {
			return b, nil
		}
		if boxes == maxBoxes {
			return nil, frame.Invalid("it is %s within %d other archives: want a module, a .gz, a .tar or a .tar.gz", kind, maxBoxes)
		}
		b.rest = append([]io.Reader{window}, b.rest...)
		if kind == "gzip" {
			unpacked, err := gzip.NewReader(window)
			if err != nil {
				return nil, frame.Invalid("its gzip is broken: %v", err)
			}
			b.Reader = &counter{in: broken{unpacked, "gzip"}, limit: limit, what: "unpacked it has", wire: wire}
			b.rest[0] = b.Reader
			continue
		}
		if b.archive != nil {
			return nil, frame.Invalid("it is a tar within another")
		}
		b.archive = tar.NewReader(window)
		if b.Reader, err = findPlugin(b.archive); err != nil {
			return nil, err
		}
	}
}

// boxOf says what something is by its first bytes, "" for no box.
func boxOf(head []byte) string {
	switch {
	case len(head) >= 3 && string(head[:3]) == "\x1f\x8b\x08":
		return "gzip"
	case len(head) == tarBlock && string(head[tarMagicAt:tarMagicAt+5]) == "ustar":
		return "tar"
	}
	return ""
}

// findPlugin reads an archive up to the module.
func findPlugin(archive *tar.Reader) (io.Reader, error) {
	var others []string
	for {
		name, err := nextFile(archive)
		switch {
		case errors.Is(err, io.EOF):
			return nil, frame.Invalid("the archive has no file %s, but %s", pluginFile, some(others))
		case err != nil:
			return nil, err
		case name == pluginFile:
			return broken{archive, "tar"}, nil
		}
		others = append(others[:min(len(others), 3)], name)
	}
}

func some(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	return strings.Join(names, ", ")
}

// nextFile is the name of the next regular file.
func nextFile(archive *tar.Reader) (string, error) {
	for {
		head, err := archive.Next()
		switch {
		case errors.Is(err, io.EOF):
			return "", io.EOF
		case errors.As(err, new(*tooLargeError)), errors.As(err, new(*frame.InvalidError)), errors.As(err, new(*wireError)):
			return "", err
		case err != nil:
			return "", frame.Invalid("its tar is broken: %v", err)
		case slices.Contains(strings.Split(head.Name, "/"), ".."):
			return "", frame.Invalid("the archive has an entry %.200q, which leads out of it", head.Name)
		case head.Typeflag == tar.TypeDir, head.Typeflag == tar.TypeXGlobalHeader:
			continue
		case head.Typeflag != tar.TypeReg:
			return "", frame.Invalid("the archive has %.200q, which is neither a file nor a directory (type %q)", head.Name, head.Typeflag)
		}
		return path.Clean(head.Name), nil
	}
}

// finish reads what is behind the module to its end, so that what is checked there is checked: that no second one follows, gzip's sums,
// and the hash of a blob.
func (b *boxed) finish() error {
	for b.archive != nil {
		name, err := nextFile(b.archive)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if name == pluginFile {
			return frame.Invalid("the archive has %s twice", pluginFile)
		}
	}
	if _, err := io.Copy(io.Discard, b.Reader); err != nil {
		return err
	}
	for _, r := range b.rest {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return nil
}

// counter ends with an error where a limit is passed, or too much comes out of what little was fetched.
type counter struct {
	in       io.Reader
	n, limit int64
	what     string
	wire     *counter // what this was unpacked from; nil: it is that
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n += int64(n)
	switch {
	case c.n > c.limit:
		return 0, &tooLargeError{c.what, c.limit}
	case c.wire == nil && err != nil && !errors.Is(err, io.EOF):
		return n, &wireError{err}
	case c.wire != nil && c.n > ratioFloor && c.n/maxRatio > c.wire.n:
		return 0, frame.Invalid("%d bytes unpack to more than %d times as many: no module does", c.wire.n, maxRatio)
	}
	return n, err
}

// wireError is one of the way to what is fetched, which an archive's reader passes on.
type wireError struct{ error }

func (e *wireError) Unwrap() error { return e.error }

// broken says of an archive's error that it is the archive's.
type broken struct {
	in   io.Reader
	kind string
}

func (b broken) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	if errors.As(err, new(*wireError)) {
		return n, err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, tar.ErrHeader) {
		err = frame.Invalid("its %s is broken: %v", b.kind, err)
	}
	return n, err
}
