package files

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/internal/atomicfile"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

const (
	// compiledForm is what a file begins with; a file of another form is of another release.
	compiledForm = "understudy compiled 1\n"
	// compiledHead is what stands before the snapshot: form, key, digest.
	compiledHead = len(compiledForm) + 2*sha256.Size
	// maxCompiled bounds the file that is read: 100,000 hosts take 150 MB.
	maxCompiled = 256 << 20
	// writeBuffer is what is written at once.
	writeBuffer = 64 << 10
	// compileAfter is how long a configuration has to be in force before it is written: files that change come in quick succession.
	compileAfter = time.Second
	// muchMoved is how many bytes that are no longer in memory are worth looking for what else is not needed.
	muchMoved = 256 << 10

	// fieldWanting and fieldDeclared follow the fields of the snapshot: what the VIPs were assigned for, see vip.Pool.Assign.
	fieldWanting  protowire.Number = 100
	fieldDeclared protowire.Number = 101
	// fieldShared is a resource that Envoy has in the place of several of the snapshot. It is for this agent alone, to have its body there.
	fieldShared protowire.Number = 102
)

// compiled is a file in which what the files made, and Envoy took, is there instead of in memory, and outlives the container: a restart
// with the same files gives it to Envoy before it parses them. The file says of which build and settings it is, and of which files, byte
// by byte; another one is of no use then. It is written as a whole, and the last writer wins.
type compiled struct {
	path     string // "": nothing is kept
	key      [sha256.Size]byte
	shared   func() xds.Snapshot // what Envoy has in the place of what is in force; nil: that
	giveBack func()
	damaged  func() // is told that it cannot be read
	log      *slog.Logger

	saving  sync.Mutex // is held by who writes, and guards failing
	failing bool       // it could not be written the last time

	mu      sync.Mutex // guards what follows, and is not held while the disk is at work: a change waits for it
	latest  *made      // what is in force; nil: it is not known
	written bool       // the file has it

	changed chan struct{} // holds a token when latest has changed
}

// made is what one state of the files made, and nothing else.
type made struct {
	registry *mesh.Registry
	snapshot *publish.Snapshot
	recalled bool // it is what the file has
}

func newCompiled(c Config) *compiled {
	f := &compiled{path: c.Compiled, shared: c.Shared, giveBack: c.GiveBack, log: c.Log("agent"), changed: make(chan struct{}, 1)}
	options := c.Options
	options.DNSResolver = nil
	f.key = sha256.Sum256(fmt.Appendf(nil, "%q %+v", c.Build, options))
	return f
}

// inForce notes what Envoy has taken as a whole; nil: it has refused some of it.
func (f *compiled) inForce(m *made) {
	if f.path == "" {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m == f.latest {
		return
	}
	f.latest, f.written = m, m != nil && m.recalled
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// of is the digest of files of which a restart would make the same; zero where it might make something else. EnvoyFilters are tried at
// each start, and their modules fetched; and what Envoy looks up by itself, it asks at a port of this start alone.
func (m *made) of() mesh.Digest {
	looksUp := func(p mesh.ServicePort) bool { return p.Resolution == mesh.ResolveDynamic }
	if len(m.registry.EnvoyFilters()) > 0 || slices.ContainsFunc(m.registry.Services(), func(s *mesh.Service) bool { return slices.ContainsFunc(s.Ports, looksUp) }) {
		return mesh.Digest{}
	}
	return m.registry.MadeOf()
}

// run writes what is in force once it has been for a while, until ctx ends.
func (f *compiled) run(ctx context.Context) {
	var rest time.Duration
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(compileAfter, rest)):
		}
		moved, size := f.save()
		if rest = atomicfile.Rest(size); moved >= muchMoved && f.giveBack != nil {
			f.giveBack()
		}
	}
}

// save writes what is in force, unless the file has it, and says how many bytes are no longer in memory and how many were written.
func (f *compiled) save() (moved, size int64) {
	f.saving.Lock()
	defer f.saving.Unlock()
	f.mu.Lock()
	m, written := f.latest, f.written
	f.mu.Unlock()
	if m == nil || written {
		return 0, 0
	}
	var bodies []placed
	info, err := atomicfile.Replace(f.path, func(w io.Writer) (err error) {
		bodies, err = f.write(w, m)
		return err
	})
	if errors.Is(err, xds.ErrUnreadable) {
		f.damaged()
		return 0, 0
	}
	if err != nil {
		if !f.failing { // its words have a name that is another each time
			f.log.Warn("what the files make is not kept for a restart of the container", "err", err)
		}
		f.failing = true
		return 0, 0
	}
	f.failing = false
	f.mu.Lock()
	f.written = f.latest == m // else the file is of an older one
	f.mu.Unlock()
	return f.move(bodies, info), info.Size()
}

// placed is a resource whose body begins at a place in the file.
type placed struct {
	resource *xds.Stored
	begins   int64
}

// move has the bodies in the file that was written, and no longer in memory. It says how many bytes of them were.
func (f *compiled) move(bodies []placed, written os.FileInfo) (moved int64) {
	file, info, err := atomicfile.Open(f.path)
	if err != nil {
		return 0 // and they stay where they are
	}
	if !os.SameFile(info, written) { // another generation's is in its place already
		_ = file.Close()
		return 0
	}
	for _, p := range bodies {
		if p.resource.InMemory() {
			moved += int64(p.resource.Size())
		}
		p.resource.Move(file, p.begins)
	}
	return moved
}

// checksums are Castagnoli's, for which processors have an instruction.
var checksums = crc32.MakeTable(crc32.Castagnoli)

// write ends with a checksum of all before it. It says where the bodies are.
func (f *compiled) write(w io.Writer, m *made) (bodies []placed, err error) {
	sum, digest := crc32.New(checksums), m.of()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), writeBuffer)
	for _, part := range [][]byte{[]byte(compiledForm), f.key[:], digest[:]} {
		_, _ = out.Write(part) // Flush has the error
	}
	resources := &snapshotWriter{to: out, at: int64(compiledHead), placed: func(r *xds.Stored, begins int64) { bodies = append(bodies, placed{r, begins}) }}
	if err := resources.write(m.snapshot); err != nil {
		return nil, err
	}
	for _, r := range f.others(m.snapshot) {
		if err := resources.resource(fieldShared, r, nil); err != nil {
			return nil, err
		}
	}
	var field []byte
	for _, h := range m.registry.AutoHosts() {
		field = appendBytes(field[:0], fieldWanting, h)
		_, _ = out.Write(field)
	}
	for _, p := range m.registry.Declared() {
		text, err := p.MarshalBinary()
		if err != nil {
			return nil, err
		}
		field = appendBytes(field[:0], fieldDeclared, text)
		_, _ = out.Write(field)
	}
	if err := out.Flush(); err != nil {
		return nil, err
	}
	_, err = w.Write(sum.Sum(nil))
	return bodies, err
}

// others are the resources that Envoy has and the snapshot has not.
func (f *compiled) others(snap *publish.Snapshot) (others []*xds.Stored) {
	if f.shared == nil {
		return nil
	}
	shared, own := f.shared(), map[*xds.Stored]bool{}
	for _, list := range snap.Resources {
		for _, r := range list {
			own[r] = true
		}
	}
	for _, url := range build.Types() {
		others = append(others, slices.DeleteFunc(slices.Clone(shared[url]), func(r *xds.Stored) bool { return own[r] })...)
	}
	return others
}

// Why a file is of no use.
var (
	errDamaged = errors.New("damaged")
	errForeign = errors.New("of another release, Envoy or settings")
	errPartial = errors.New("a start may make something else of these files")
	errChanged = errors.New("the files have changed since")
)

// load reads what the files with a digest have made. It is fs.ErrNotExist where nothing was kept.
func (f *compiled) load(of mesh.Digest) (*recalled, error) {
	if f.path == "" {
		return nil, fs.ErrNotExist
	}
	file, info, err := atomicfile.Open(f.path)
	if err != nil {
		return nil, err
	}
	r, err := f.read(file, info.Size(), of)
	if err != nil {
		_ = file.Close() // which was read
		return nil, err
	}
	return r, nil
}

// read reads the file, in which the bodies stay.
func (f *compiled) read(file *os.File, size int64, of mesh.Digest) (*recalled, error) {
	if size > maxCompiled {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", size, maxCompiled)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, err
	}
	if len(data) < compiledHead+crc32.Size || string(data[:len(compiledForm)]) != compiledForm {
		return nil, errForeign
	}
	data, sum := data[:len(data)-crc32.Size], binary.BigEndian.Uint32(data[len(data)-crc32.Size:])
	switch {
	case sum != crc32.Checksum(data, checksums):
		return nil, errDamaged
	case [sha256.Size]byte(data[len(compiledForm):]) != f.key:
		return nil, errForeign
	case mesh.Digest(data[len(compiledForm)+sha256.Size:]) == mesh.Digest{}:
		return nil, errPartial
	case mesh.Digest(data[len(compiledForm)+sha256.Size:]) != of:
		return nil, errChanged
	}
	body := data[compiledHead:]
	r := &recalled{of: of, taken: make(chan struct{})}
	r.noteTaken = sync.OnceFunc(func() { close(r.taken) })
	var err error
	if r.snapshot, _, err = unmarshalSnapshot(body); err != nil {
		return nil, err
	}
	for _, list := range r.snapshot.Resources {
		for _, m := range list {
			body, _ := m.Body() // which is a part of data
			m.Move(file, int64(cap(data)-cap(body)))
		}
	}
	return r, eachField(body, func(number protowire.Number, value []byte, _ uint64) error {
		switch number {
		case fieldWanting:
			r.wanting = append(r.wanting, string(value))
		case fieldDeclared:
			var p netip.Prefix
			if err := p.UnmarshalBinary(value); err != nil {
				return fmt.Errorf("a declared address: %w", err)
			}
			r.declared = append(r.declared, p)
		}
		return nil
	})
}
