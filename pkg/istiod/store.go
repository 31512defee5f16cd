package istiod

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"os"
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

// store is a file with what Envoy has of istiod, for the agent that starts after this one in the same pod, while istiod is away. It
// has a line of JSON, what xds.Relay.Export writes, and a checksum of both. Its time of modification is when istiod could last have
// told of a change. It is written as a whole: what it has is not in memory twice, and the last writer wins.
type store struct {
	path string
	// maxAge is how old what istiod has said may be for an Envoy to start with it: a policy that was made meanwhile is not in it.
	maxAge time.Duration
	saved  os.FileInfo // the file that this store has written; nil: none
}

// storedHead is the first line.
type storedHead struct {
	// Key is of the pod and the istiod whose configuration it is.
	Key   string          `json:"key"`
	Names json.RawMessage `json:"names,omitempty"` // see marshalNames
}

// storedKey is the same for the same proxy under the same istiod.
func storedKey(node *corev3.Node, address string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q ", address, node.GetId())
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(node.GetMetadata()) // what cannot be read makes another key
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// save writes the file.
func (s *store) save(head storedHead, resources func(io.Writer) error) error {
	saved, err := atomicfile.Replace(s.path, func(w io.Writer) error { return writeStored(w, head, resources) })
	if err == nil {
		s.saved = saved
	}
	return err
}

func writeStored(f io.Writer, head storedHead, resources func(io.Writer) error) error {
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	w := &bounded{io.MultiWriter(f, sum), maxStored - checksumSize}
	line, err := json.Marshal(head)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := resources(w); err != nil {
		return err
	}
	return binary.Write(f, binary.BigEndian, sum.Sum64())
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

// size is the file's in bytes, 0 if there is none.
func (s *store) size() int64 {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// own says whether the file is the one that this store has written last: another generation of the pod writes its own.
func (s *store) own() bool {
	info, err := os.Stat(s.path)
	return err == nil && s.saved != nil && os.SameFile(info, s.saved)
}

// touch says that the file is still what istiod says.
func (s *store) touch(now time.Time) error { return os.Chtimes(s.path, now, now) }

// errStored says why a file is of no use.
var errStored = errors.New("not what an agent of this pod has written last")

// load reads the file, if it is of this key and not too old, and says how old it is.
func (s *store) load(key string, now time.Time, take func(names []byte, resources io.Reader) error) (healthy time.Time, err error) {
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
	var head storedHead
	if err == nil {
		err = json.Unmarshal(bytes.TrimSpace(line), &head)
	}
	if err != nil || head.Key != key {
		return healthy, fmt.Errorf("%s: %w: of another proxy, or of another istiod", s.path, errStored)
	}
	return healthy, take(head.Names, in)
}

// whole compares the checksum.
func (s *store) whole(f io.ReaderAt, content *io.SectionReader) bool {
	sum := crc64.New(crc64.MakeTable(crc64.ECMA))
	if _, err := io.Copy(sum, content); err != nil || content.Size() <= 0 {
		return false
	}
	_, err := content.Seek(0, io.SeekStart)
	var want [checksumSize]byte
	_, readErr := f.ReadAt(want[:], content.Size())
	return err == nil && readErr == nil && binary.BigEndian.Uint64(want[:]) == sum.Sum64()
}
