package xds

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
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

// Export writes what Envoy has taken, for the relay of the next generation, but for some types. What Envoy refuses, or has not
// answered for, is not in it.
func (r *Relay) Export(w io.Writer, without ...string) error {
	out := bufio.NewWriter(w)
	for _, t := range r.taken(without) {
		writeRecord(out, appendField(nil, recordType, t.url))
		for _, m := range t.resources {
			writeRecord(out, appendField(appendField(nil, recordName, m.Name), recordBody, m.Body))
		}
		for _, name := range t.absent {
			writeRecord(out, appendField(nil, recordAbsent, name))
		}
	}
	if err := out.Flush(); err != nil { // the first error of all
		return fmt.Errorf("write the resources of istiod: %w", err)
	}
	return nil
}

// Taken passes to do the body of each resource that Envoy has taken, which does not change any more.
func (r *Relay) Taken(do func(body []byte)) {
	for _, t := range r.taken(nil) {
		for _, m := range t.resources {
			do(m.Body)
		}
	}
}

// exported is one type of resources.
type exported struct {
	url       string
	resources []Resource
	absent    []string
}

// taken is what Envoy has taken. The bodies do not change any more.
func (r *Relay) taken(without []string) (all []exported) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(r.ledgers)) {
		l := r.ledgers[url]
		if !l.complete || !l.wanted() || slices.Contains(without, url) {
			continue
		}
		t := exported{url: url, absent: slices.Collect(maps.Keys(l.absent))}
		for _, e := range l.held {
			if e.taken.version != 0 {
				t.resources = append(t.resources, e.taken)
			}
		}
		all = append(all, t)
	}
	return all
}

func writeRecord(out *bufio.Writer, record []byte) {
	_, _ = out.Write(protowire.AppendVarint(nil, uint64(len(record)))) // Flush has the error
	_, _ = out.Write(record)
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
		l = newLedger()
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
		m := NewResource(string(name), fields[recordBody])
		l.held[m.Name] = entry{newest: m, taken: m}
	}
	return l, nil
}

// Forget drops what was taken over and Envoy has not asked for.
func (r *Relay) Forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.ledgers {
		if l.wildcard {
			continue
		}
		unasked := func(name string) bool { _, named := l.names[name]; return !named }
		maps.DeleteFunc(l.held, func(name string, _ entry) bool { return unasked(name) })
		maps.DeleteFunc(l.absent, func(name string, _ struct{}) bool { return unasked(name) })
	}
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
