package xds

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"understudy.mesh/pkg/xds/internal/body"
	"understudy.mesh/pkg/xds/internal/wire"
)

// Stored is one resource of a snapshot. All who hold it hold the same: its body is there once, in memory or, after Move, in a file. Two
// are told apart by their pointers. It is safe for concurrent use.
type Stored struct {
	// Name is unique within its type.
	Name string
	// version is as that of a Resource.
	version uint64
	body    atomic.Pointer[location]
}

// location is where a body is.
type location struct {
	memory     []byte
	body.Place // without a file it is in memory
}

// NewStored is a resource whose body, the serialized message itself and not an Any, is in memory. The body must not change any more.
func NewStored(name string, content []byte) *Stored {
	return NewResource(name, content).Stored()
}

// Stored is the resource as one of a snapshot.
func (m Resource) Stored() *Stored {
	s := &Stored{Name: m.Name, version: m.version}
	s.body.Store(&location{memory: m.Body, Place: body.Place{Size: uint32(len(m.Body))}})
	return s
}

// Move has the body read from a file, where it lies from at on, and keeps it in memory no longer. Nothing of the file may change, which
// closes itself once no body in it is needed.
func (s *Stored) Move(file *os.File, at int64) {
	s.body.Store(&location{Place: body.Place{File: file, At: uint32(at), Size: uint32(s.Size())}})
}

// ErrUnreadable is of a resource whose body is in a file that cannot be read any more, or has something else by now. Whoever has made the
// resource has to make it again.
var ErrUnreadable = errors.New("unreadable")

// Body is the body, which nobody may change. Its error is ErrUnreadable.
func (s *Stored) Body() ([]byte, error) { return new(Bodies).Of(s) }

// Size is that of the body in bytes.
func (s *Stored) Size() int { return int(s.body.Load().Size) }

// InMemory says whether the body is there.
func (s *Stored) InMemory() bool { return s.body.Load().File == nil }

// Equal says whether two have the same body; nil has none.
func (s *Stored) Equal(other *Stored) bool {
	return s == other || s != nil && other != nil && s.version == other.version
}

// Bodies reads the bodies of many resources, fastest in the order in which they lie in a file. The zero value is ready.
type Bodies struct{ from body.Reader }

// Of is Stored.Body, and valid until it is called again.
func (b *Bodies) Of(s *Stored) ([]byte, error) {
	at := s.body.Load()
	if at.File == nil {
		return at.memory, nil
	}
	content, err := b.from.Read(at.Place, s.version)
	if err != nil {
		return nil, fmt.Errorf("read resource %q again: %w: %w", s.Name, ErrUnreadable, err)
	}
	return content, nil
}

// frame is resources as a response to Envoy has them, in one piece of memory.
func frame(url string, resources []*Stored) ([]byte, error) {
	size := 0
	for _, s := range resources {
		size += wire.SizeOf(url, s.Name, s.Size())
	}
	b, bodies := make([]byte, 0, size), Bodies{}
	for _, s := range resources {
		content, err := bodies.Of(s)
		if err != nil {
			return nil, err
		}
		b = wire.AppendResource(b, url, s.Name, content, s.version)
	}
	return b, nil
}
