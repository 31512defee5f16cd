// Package store owns the file in which what istiod has said outlives the container.
package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"

	"understudy.mesh/internal/atomicfile"
)

const (
	// maxStored bounds the file: a volume has no room for everything.
	maxStored = 64 << 20
	// checksumSize is at the end of the file.
	checksumSize = 8
)

// Store is a file with what Envoy has of istiod, for the agent that starts after this one in the same pod, while istiod is away. It
// has a line of JSON, what xds.Relay.Export writes, and a checksum of both. Its time of modification is when istiod could last have
// told of a change. It is written as a whole: what it has is not in memory twice, and the last writer wins.
type Store struct {
	path string
	// maxAge is how old what istiod has said may be for an Envoy to start with it: a policy that was made meanwhile is not in it.
	maxAge time.Duration
	saved  os.FileInfo // the file that this store has written; nil: none
}

// New returns the one at path, of which nothing is loaded that is older than maxAge. It touches no file.
func New(path string, maxAge time.Duration) *Store { return &Store{path: path, maxAge: maxAge} }

// Head is the first line of the file.
type Head struct {
	// Key is of the pod and the istiod whose configuration it is: see [Key].
	Key string `json:"key"`
	// Names are those that DNS answers, in JSON.
	Names json.RawMessage `json:"names,omitempty"`
}

// Key is the same for the same proxy under the same istiod.
func Key(node *corev3.Node, address string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q ", address, node.GetId())
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(node.GetMetadata()) // what cannot be read makes another key
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// Save writes the file, and says where in it the resources begin.
func (s *Store) Save(head Head, resources func(io.Writer) error) (begin int64, err error) {
	names := head.Names
	head.Names = nil // they are megabytes, and encoding/json would copy them twice
	line, err := json.Marshal(head)
	if err != nil {
		return 0, err
	}
	if names != nil {
		line = slices.Concat(line[:len(line)-1], []byte(`,"names":`), names, []byte("}"))
	}
	line = append(line, '\n')
	saved, err := atomicfile.Replace(s.path, func(w io.Writer) error { return writeStored(w, line, resources) })
	if err == nil {
		s.saved = saved
	}
	return int64(len(line)), err
}

// Open opens the file that this store has written last, and fails if another one is in its place.
func (s *Store) Open() (*os.File, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || s.saved == nil || !os.SameFile(info, s.saved) {
		return nil, errors.Join(err, f.Close(), fmt.Errorf("%s: %w", s.path, errStored))
	}
	return f, nil
}

// newSum is Castagnoli's, for which processors have an instruction.
func newSum() hash.Hash32 { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

func writeStored(f io.Writer, line []byte, resources func(io.Writer) error) error {
	sum := newSum()
	w := &bounded{io.MultiWriter(f, sum), maxStored - checksumSize}
	if _, err := w.Write(line); err != nil {
		return err
	}
	if err := resources(w); err != nil {
		return err
	}
	return binary.Write(f, binary.BigEndian, uint64(sum.Sum32()))
}

// bounded fails for more than left bytes.
type bounded struct {
	io.Writer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, fmt.Errorf("more than %d bytes", maxStored)
	}
	return b.Writer.Write(p)
}

// Beside is an empty file on the same volume, which is gone when nobody has it open any more.
func (s *Store) Beside() (*os.File, error) { return atomicfile.Unnamed(s.path) }

// Size is the file's in bytes, 0 if there is none.
func (s *Store) Size() int64 {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Own says whether the file is the one that this store has written last: another generation of the pod writes its own.
func (s *Store) Own() bool {
	info, err := os.Stat(s.path)
	return err == nil && s.saved != nil && os.SameFile(info, s.saved)
}

// Touch says that the file is still what istiod says.
func (s *Store) Touch(now time.Time) error { return os.Chtimes(s.path, now, now) }

// errStored says why a file is of no use.
var errStored = errors.New("not what an agent of this pod has written last")

// Load reads the file, if it is of this key and not too old, and says how old it is.
func (s *Store) Load(key string, now time.Time, take func(names []byte, resources io.Reader) error) (healthy time.Time, err error) {
	f, err := os.Open(s.path)
	if err != nil {
		return time.Time{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return time.Time{}, err
	}
	healthy = info.ModTime()
	content := io.NewSectionReader(f, 0, info.Size()-checksumSize)
	if info.Size() > maxStored || !s.whole(f, content) {
		return healthy, fmt.Errorf("%s: %w: damaged", s.path, errStored)
	}
	if age := now.Sub(healthy); age > s.maxAge || age < -time.Minute {
		return healthy, fmt.Errorf("%s is %v old, at most %v", s.path, age.Round(time.Second), s.maxAge)
	}
	in := bufio.NewReader(content)
	line, err := in.ReadBytes('\n')
	var head Head
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(line), &head)
	}
	if err != nil || head.Key != key {
		return healthy, fmt.Errorf("%s: %w: of another proxy, or of another istiod", s.path, errStored)
	}
	return healthy, take(head.Names, in)
}

// whole compares the checksum.
func (s *Store) whole(f io.ReaderAt, content *io.SectionReader) bool {
	sum := newSum()
	if _, err := io.Copy(sum, content); err != nil || content.Size() <= 0 {
		return false
	}
	_, err := content.Seek(0, io.SeekStart)
	var want [checksumSize]byte
	_, readErr := f.ReadAt(want[:], content.Size())
	return err == nil && readErr == nil && binary.BigEndian.Uint64(want[:]) == uint64(sum.Sum32())
}
