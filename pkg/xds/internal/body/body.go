// Package body owns what tells the bodies of resources apart, and where in a file one lies.
package body

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"slices"
)

// Place is where in a file a body lies.
type Place struct {
	File     *os.File // nothing of it changes; closed by the collector when nothing is in it any more
	At, Size uint32
}

// versions makes hashes differ from one process to the next: no Envoy outlives its agent.
var versions = maphash.MakeSeed()

// Version is a hash of a body that says something in this process alone. It is never 0, which is what a stream believes of a resource
// whose version it does not know.
func Version(body []byte) uint64 { return max(maphash.Bytes(versions, body), 1) }

// errChanged says that a file has not what was written.
var errChanged = errors.New("the file has changed")

// readAhead is how much is read at once of bodies that lie one behind the other.
const readAhead = 64 << 10

// near is how far behind a body another one lies that is the next: its name is between them.
const near = 4 << 10

// Reader reads bodies, fastest in the order in which they lie in a file. The zero value is ready.
type Reader struct {
	file   *os.File
	part   []byte // of file, from partAt on
	partAt int64
	end    int64 // of the body that was read last
}

// Read returns a body, which has to be of a version. It is valid until Read is called again.
func (r *Reader) Read(p Place, version uint64) ([]byte, error) {
	at, size := int64(p.At), int(p.Size)
	if r.file != p.File || at < r.partAt || at+int64(size) > r.partAt+int64(len(r.part)) {
		want := size
		if r.file == p.File && at >= r.end && at-r.end <= near {
			want = max(size, readAhead)
		}
		r.part = slices.Grow(r.part[:0], want)[:want]
		n, err := p.File.ReadAt(r.part, at)
		r.file, r.part, r.partAt = p.File, r.part[:n], at
		if n < size {
			return nil, cmp.Or(err, io.ErrUnexpectedEOF)
		}
	}
	body := r.part[at-r.partAt:][:size]
	r.end = at + int64(size)
	if Version(body) != version {
		return nil, fmt.Errorf("%s: %w", p.File.Name(), errChanged)
	}
	return body, nil
}
