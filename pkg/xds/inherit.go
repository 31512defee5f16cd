package xds

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// The form in which a relay's resources travel: records, each a message in the wire format of protobuf behind its length (a
// varint), so that a release that knows more can add fields. A record names a type, or is of the type that was named last:
// a resource, or a name of which the upstream says that there is none.
const (
	recordType   protowire.Number = 1
	recordName   protowire.Number = 2
	recordBody   protowire.Number = 3
	recordAbsent protowire.Number = 4
)

// maxRecord bounds a record that is read. A resource comes in a response, which has a bound of its own below.
const maxRecord = 256 << 20

// exportBuffer is how much is written at once, and read at once of what is in a file.
const exportBuffer = 64 << 10

// Export writes what Envoy has taken, for the relay of the next generation, but for some types. What Envoy refuses, or has not
// answered for, is not in it. It says what is where.
func (r *Relay) Export(w io.Writer, without ...string) (Exported, error) {
	out := exporter{to: bufio.NewWriterSize(w, exportBuffer)}
	var e Exported
	for _, t := range r.taken(without) {
		out.record(nil, appendField(nil, recordType, t.url))
		for i, k := range t.resources {
			body, err := out.bodyOf(k)
			if err != nil {
				return Exported{}, fmt.Errorf("read %s %q again: %w", kindOf(t.url), k.name, err)
			}
			out.head = appendField(out.head[:0], recordName, k.name)
			out.head = protowire.AppendTag(out.head, recordBody, protowire.BytesType)
			out.head = protowire.AppendVarint(out.head, uint64(k.size))
			out.record(body, out.head)
			t.places[i] = uint32(out.at) - k.size
		}
		for _, name := range t.absent {
			out.record(nil, appendField(nil, recordAbsent, name))
		}
		e.types = append(e.types, t)
	}
	if err := out.to.Flush(); err != nil { // the first error of all
		return Exported{}, fmt.Errorf("write the resources of istiod: %w", err)
	}
	return e, nil
}

// exporter writes records.
type exporter struct {
	to     *bufio.Writer
	at     int64  // what was written
	head   []byte // of a record
	from   *os.File
	part   []byte // of from, from partAt on
	partAt int64
}

// record writes one, which is a head and a body.
func (o *exporter) record(body, head []byte) {
	var size [binary.MaxVarintLen64]byte
	for _, b := range [][]byte{binary.AppendUvarint(size[:0], uint64(len(head)+len(body))), head, body} {
		n, _ := o.to.Write(b) // Flush has the error
		o.at += int64(n)
	}
}

// bodyOf is valid until it is called again.
func (o *exporter) bodyOf(k *kept) ([]byte, error) {
	if k.raw != nil {
		return k.body(), nil
	}
	begin := int64(k.at) - o.partAt
	if o.from != k.file || begin < 0 || begin+int64(k.size) > int64(len(o.part)) {
		o.part = slices.Grow(o.part[:0], max(exportBuffer, int(k.size)))
		n, err := k.file.ReadAt(o.part[:cap(o.part)], int64(k.at))
		if n < int(k.size) {
			return nil, cmp.Or(err, io.ErrUnexpectedEOF)
		}
		o.from, o.part, o.partAt, begin = k.file, o.part[:n], int64(k.at), 0
	}
	body := o.part[begin:][:k.size]
	if versionOf(body) != k.version {
		return nil, fmt.Errorf("%s has changed", k.file.Name())
	}
	return body, nil
}

// Taken passes to do the body of each resource that Envoy has taken, which does not change any more.
func (r *Relay) Taken(do func(body []byte)) {
	for _, t := range r.taken(nil) {
		for _, k := range t.resources {
			if loaded, err := k.load(t.url); err == nil { // else it is no longer, either
				do(loaded.body())
			}
		}
	}
}

// Exported is what Export has written.
type Exported struct{ types []exported }

// exported is one type of resources.
type exported struct {
	url       string
	resources []*kept
	places    []uint32 // of their bodies
	absent    []string
}

// Release has the relay read the bodies of what it has exported from a file when it needs them again, and keep them in memory no
// longer. What Export has written begins there at a place. Nothing of the file may change, which closes itself. It returns how many
// bytes that were.
func (r *Relay) Release(e Exported, file *os.File, begin int64) (bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range e.types {
		l := r.ledgers[t.url]
		for i, k := range t.resources {
			have, held := l.held[k.name]
			if !held || have.taken != k {
				continue // another one by now
			}
			released := k.in(file, uint32(begin)+t.places[i])
			if have.newest == have.taken {
				have.newest = released
			}
			have.taken = released
			l.held[k.name] = have
			bytes += len(k.raw)
		}
	}
	return bytes
}

// taken is what Envoy has taken, in the order in which it lies in a file.
func (r *Relay) taken(without []string) (all []exported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(r.ledgers)) {
		l := r.ledgers[url]
		if !l.complete || !l.wanted() || slices.Contains(without, url) {
			continue
		}
		t := exported{url: url, absent: slices.Collect(maps.Keys(l.absent)), resources: make([]*kept, 0, len(l.held))}
		for _, e := range l.held {
			if e.taken != nil {
				t.resources = append(t.resources, e.taken)
			}
		}
		slices.SortFunc(t.resources, func(a, b *kept) int { return cmp.Compare(a.at, b.at) })
		t.places = make([]uint32, len(t.resources))
		all = append(all, t)
	}
	return all
}

func appendField[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(value))), value...)
}

// Import takes over what the relay of the generation before has exported: Envoy is served from it, and the first responses of
// the upstream are compared with it. Of a type for which the upstream has answered it takes nothing, and with an error nothing
// at all.
func (r *Relay) Import(from io.Reader) error {
	ledgers := make(map[string]*ledger)
	in := bufio.NewReader(from)
	var l *ledger
	for {
		record, err := readRecord(in)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			l, err = importRecord(ledgers, l, record)
		}
		if err != nil {
			return fmt.Errorf("read the resources of the generation before: %w", err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for url, l := range ledgers {
		if have := r.ledgers[url]; have == nil {
			r.ledgers[url] = l
		} else if !have.complete {
			have.held, have.absent, have.complete = l.held, l.absent, true
			r.serve(url, have)
		}
	}
	return nil
}

// serve gives the Envoy that is connected what it has asked for of a type.
func (r *Relay) serve(url string, l *ledger) {
	if r.stream == nil || r.stream.interests[url] == nil {
		return
	}
	sub := r.stream.interests[url]
	resources, absent := l.missing(*sub, nil)
	removed := make(map[string]entry, len(absent))
	for _, name := range absent {
		removed[name] = entry{}
	}
	r.stream.respond(url, l, sub, resources, removed)
}

// errRecord says that a record is not what it ought to be.
var errRecord = errors.New("a record that is none")

// readRecord fails with io.EOF where there is no further one.
func readRecord(in *bufio.Reader) ([]byte, error) {
	size, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err // io.EOF only before the first byte
	}
	if size > maxRecord {
		return nil, fmt.Errorf("%w: of %d bytes, at most %d", errRecord, size, maxRecord)
	}
	record, err := io.ReadAll(io.LimitReader(in, int64(size))) // what is not there is not allocated for
	if err == nil && uint64(len(record)) < size {
		err = io.ErrUnexpectedEOF
	}
	return record, err
}

// importRecord takes a record into l, and returns the ledger of the next one.
func importRecord(ledgers map[string]*ledger, l *ledger, record []byte) (*ledger, error) {
	fields := make(map[protowire.Number][]byte)
	for len(record) > 0 {
		number, kind, size := protowire.ConsumeTag(record)
		if size < 0 {
			return nil, fmt.Errorf("%w: %w", errRecord, protowire.ParseError(size))
		}
		record = record[size:]
		if size = protowire.ConsumeFieldValue(number, kind, record); size < 0 {
			return nil, fmt.Errorf("%w: %w", errRecord, protowire.ParseError(size))
		}
		if kind == protowire.BytesType {
			fields[number], _ = protowire.ConsumeBytes(record)
		}
		record = record[size:]
	}
	if url, is := fields[recordType]; is {
		l = newLedger(string(url))
		l.complete = true
		ledgers[string(url)] = l
		return l, nil
	}
	name, named := fields[recordName]
	absent, gone := fields[recordAbsent]
	switch {
	case !named && !gone: // of another release
	case l == nil:
		return nil, fmt.Errorf("%w: a resource of no type", errRecord)
	case gone:
		l.absent[string(absent)] = struct{}{}
	case len(name) == 0:
		return nil, fmt.Errorf("%w: a resource without a name", errRecord)
	default:
		k := keep(l.url, NewResource(string(name), fields[recordBody]))
		l.held[k.name] = entry{newest: k, taken: k}
	}
	return l, nil
}

// Forget drops what was taken over, or asked for before Envoy did, and Envoy has not asked for.
func (r *Relay) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for url, l := range r.ledgers {
		if l.wildcard {
			continue
		}
		r.forgetForeseen(url, l)
		unasked := func(name string) bool { _, named := l.names[name]; return !named }
		maps.DeleteFunc(l.held, func(name string, _ entry) bool { return unasked(name) })
		maps.DeleteFunc(l.absent, func(name string, _ struct{}) bool { return unasked(name) })
	}
}

// forgetForeseen has the upstream told that nobody wants what Envoy, which is connected, has not asked for.
func (r *Relay) forgetForeseen(url string, l *ledger) {
	if r.stream == nil {
		return // what it asked for is known once it is back
	}
	sub := r.stream.interests[url]
	for name := range l.names {
		if sub == nil || !sub.in(name) {
			l.unsubscribe(name)
		}
	}
	if sub == nil { // nobody will answer
		r.resolve(l, l.unsent, "")
		l.unsent = nil
	}
	r.wake()
}

// Lost is a resource that an earlier Envoy had and this one refuses, and why; "": there is none.
func (r *Relay) Lost() (name, refusal string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(r.ledgers)) {
		if l := r.ledgers[url]; len(l.lost) > 0 {
			name = slices.Min(slices.Collect(maps.Keys(l.lost)))
			return kindOf(url) + " " + name, l.refused[name]
		}
	}
	return "", ""
}
