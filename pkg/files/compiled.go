package files

import (
	"bufio"
	"bytes"
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
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/dnsproxy/table"
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
	compileAfter = 10 * time.Second

	// parsePatience is how long an Envoy may take to answer for what the same files have made before, until they are parsed all the same:
	// one that hangs may need another configuration.
	parsePatience = 30 * time.Second

	// fieldWanting and fieldDeclared follow the fields of the snapshot: what the VIPs were assigned for, see vip.Pool.Assign.
	fieldWanting  protowire.Number = 100
	fieldDeclared protowire.Number = 101
)

// compiled is a file in which what the files made, and Envoy took, outlives the container: a restart with the same files gives it to
// Envoy before it parses them. The file says of which build and settings it is, and of which files, byte by byte; another one is of no
// use. It is written as a whole, and the last writer wins.
type compiled struct {
	path     string // "": nothing is kept
	key      [sha256.Size]byte
	resolver []byte // of Envoy's look-ups, whose port is of this start alone; nil: none
	log      *slog.Logger

	mu      sync.Mutex // guards what follows
	latest  *made      // what is in force; nil: nothing that the files alone made
	written bool       // the file has it
	failing bool       // it could not be written the last time

	changed chan struct{} // holds a token when latest has changed
}

// made is what one state of the files made, and nothing else.
type made struct {
	registry *mesh.Registry
	snapshot *publish.Snapshot
	recalled bool // it is what the file has
}

func newCompiled(c Config) *compiled {
	f := &compiled{path: c.Compiled, log: c.Log("agent"), changed: make(chan struct{}, 1)}
	options := c.Options
	options.DNSResolver = nil
	f.resolver = c.Options.DNSResolver.GetTypedConfig().GetValue()
	f.key = sha256.Sum256(fmt.Appendf(nil, "%q %+v", c.Build, options))
	return f
}

// inForce notes what Envoy has taken as a whole. Nil, and what the files did not make alone, is not for the file: a restart might make
// something else of them.
func (f *compiled) inForce(m *made) {
	if f.path == "" {
		return
	}
	if m != nil && !f.keeps(m) {
		m = nil
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

// keeps says whether a restart would make the same. EnvoyFilters are tried at each start, and their modules fetched.
func (f *compiled) keeps(m *made) bool {
	if m.registry.MadeOf() == (mesh.Digest{}) || len(m.registry.EnvoyFilters()) > 0 {
		return false
	}
	for _, list := range m.snapshot.Resources {
		for _, r := range list {
			if f.resolver != nil && bytes.Contains(r.Body, f.resolver) {
				return false
			}
		}
	}
	return true
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
		rest = f.save()
	}
}

// save writes what is in force, unless the file has it, and says for how long nothing should be written then.
func (f *compiled) save() (rest time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.latest
	if m == nil || f.written {
		return 0
	}
	info, err := atomicfile.Replace(f.path, func(w io.Writer) error { return f.write(w, m) })
	if err != nil {
		if !f.failing { // its words have a name that is another each time
			f.log.Warn("what the files make is not kept for a restart of the container", "err", err)
		}
		f.failing = true
		return 0
	}
	f.written, f.failing = true, false
	return atomicfile.Rest(info.Size())
}

// checksums are Castagnoli's, for which processors have an instruction.
var checksums = crc32.MakeTable(crc32.Castagnoli)

// write ends with a checksum of all before it.
func (f *compiled) write(w io.Writer, m *made) error {
	sum, digest := crc32.New(checksums), m.registry.MadeOf()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), writeBuffer)
	for _, part := range [][]byte{[]byte(compiledForm), f.key[:], digest[:]} {
		_, _ = out.Write(part) // Flush has the error
	}
	if err := writeSnapshot(out, m.snapshot); err != nil {
		return err
	}
	var field []byte
	for _, h := range m.registry.AutoHosts() {
		field = appendBytes(field[:0], fieldWanting, h)
		_, _ = out.Write(field)
	}
	for _, p := range m.registry.Declared() {
		text, err := p.MarshalBinary()
		if err != nil {
			return err
		}
		field = appendBytes(field[:0], fieldDeclared, text)
		_, _ = out.Write(field)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(sum.Sum(nil))
	return err
}

// recalled is what a file has.
type recalled struct {
	of       mesh.Digest
	snapshot *publish.Snapshot
	wanting  []string
	declared []netip.Prefix
	// taken is closed by noteTaken, once Envoy has answered for it.
	taken     chan struct{}
	noteTaken func()
}

// restart is how far a start is with what was kept.
type restart struct {
	// succeeds says that there is a generation before.
	succeeds bool
	// recalled is what next is to return first, nil: what the files make. It was made of them before.
	recalled atomic.Pointer[recalled]
	// unchecked is what Envoy was given of it, until it is known what the files make.
	unchecked *recalled
	// checked says that it has just become known: what it took is garbage once Envoy has answered.
	checked bool
	// making is what next has returned last; nil: nothing that the files have made.
	making *made
}

// Why a file is of no use.
var (
	errDamaged = errors.New("damaged")
	errForeign = errors.New("of another release, Envoy or settings")
	errChanged = errors.New("the files have changed since")
)

// load reads what the files with a digest have made. It is fs.ErrNotExist where nothing was kept.
func (f *compiled) load(of mesh.Digest) (*recalled, error) {
	if f.path == "" {
		return nil, fs.ErrNotExist
	}
	data, err := atomicfile.Read(f.path, maxCompiled)
	if err != nil {
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
	case mesh.Digest(data[len(compiledForm)+sha256.Size:]) != of:
		return nil, errChanged
	}
	body := data[compiledHead:]
	r := &recalled{of: of, taken: make(chan struct{})}
	r.noteTaken = sync.OnceFunc(func() { close(r.taken) })
	if r.snapshot, _, err = unmarshalSnapshot(body); err != nil {
		return nil, err
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

// begin gives Envoy what the same files have made before, if that was kept, and leaves it the processor until it has answered.
func (f *Files) begin(ctx context.Context) {
	r := f.recall()
	if r == nil {
		return
	}
	f.recalled.Store(r)
	f.latest.changed <- struct{}{} // nothing else has put one there
	select {
	case <-ctx.Done():
	case <-r.taken:
	case <-time.After(parsePatience):
	}
}

// noteAnswer takes in that Envoy has answered for what next has returned last, and took all of it or not.
func (f *Files) noteAnswer(all bool) {
	if f.unchecked != nil {
		f.unchecked.noteTaken()
	}
	if f.checked && f.c.GiveBack != nil {
		f.c.GiveBack()
	}
	f.checked = false
	if all {
		f.compiled.inForce(f.making)
	} else {
		f.compiled.inForce(nil) // until a retry is taken
	}
}

// recall is what the same files have made before, nil if nobody has kept it: then they are parsed.
func (f *Files) recall() *recalled {
	if f.succeeds || f.compiled.path == "" {
		return nil
	}
	of, err := f.source.Digest()
	if err != nil {
		return nil // Load says it
	}
	r, err := f.compiled.load(of)
	if err == nil && !f.hasVIPs(r) {
		err = errors.New("hosts have other VIPs")
	}
	switch {
	case err == nil:
		f.log.Info("Envoy starts with what the same files have made before", "file", f.compiled.path)
		return r
	case errors.Is(err, fs.ErrNotExist): // the first start of the pod
	default:
		f.log.Info("the configuration files are parsed: what was kept of them is not used", "file", f.compiled.path, "reason", err)
	}
	return nil
}

// hasVIPs says whether all hosts that had VIPs have the same.
func (f *Files) hasVIPs(r *recalled) bool {
	vips, err := f.c.VIPs.Assign(r.wanting, r.declared...)
	had := make(map[string][]netip.Addr, len(r.snapshot.Hosts))
	for _, h := range r.snapshot.Hosts {
		had[h.Name] = h.Addrs
	}
	return err == nil && !slices.ContainsFunc(r.wanting, func(host string) bool {
		now := slices.DeleteFunc(slices.Clone(vips[host]), func(a netip.Addr) bool { return !f.c.Options.HasFamily(a) })
		return !slices.Equal(now, had[host])
	})
}

// check compares what was recalled with what the same files make. Envoy gets the difference as it gets every change.
func (f *Files) check(r *recalled, now *made) {
	now.recalled = r.of == now.registry.MadeOf() && unchanged(r.snapshot, now.snapshot)
	if r.of == now.registry.MadeOf() && !now.recalled {
		f.log.Warn("what was kept of the files is not what they make: Envoy gets what they make", "file", f.compiled.path)
	}
}

// unchanged says whether two have the same resources, byte by byte, and hosts.
func unchanged(a, b *publish.Snapshot) bool {
	for _, url := range build.Types() {
		if !slices.EqualFunc(a.Resources[url], b.Resources[url], func(x, y xds.Resource) bool { return x.Name == y.Name && bytes.Equal(x.Body, y.Body) }) {
			return false
		}
	}
	return slices.EqualFunc(a.Hosts, b.Hosts, func(x, y table.Host) bool {
		return x.Name == y.Name && x.VIP == y.VIP && x.Forwarded == y.Forwarded && slices.Equal(x.Addrs, y.Addrs)
	})
}
