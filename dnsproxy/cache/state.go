package cache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
	"time"

	"understudy.mesh/dnsproxy/internal/wire"
)

// The cache of one agent is another's at an upgrade. Its form, all numbers big
// endian:
//
//	"UDNC", version, CRC-32C of what follows
//	then for each entry, the one used last first:
//	  uint64 wall-clock time at which it was stored, Unix nanoseconds
//	  uint16 length, the server that said so ([netip.AddrPort.MarshalBinary])
//	  uint16 length, the key (see appendKey)
//	  uint16 length, the message, with the TTLs that it had when it was stored
//
// How long an entry may be kept is not in it: the reader finds that out itself.
const (
	stateMagic   = "UDNC"
	stateVersion = 1
	stateHeader  = len(stateMagic) + 1 + crc32.Size
	entryFixed   = 8 + 3*2

	// maxState bounds what is read: four times what a cache of the
	// default size can have.
	maxState = 4 * defaultBytes
)

var errCut = errors.New("it ends within an entry")

// Export returns the cache in at most maxBytes for a successor on this machine: the
// entries used last, as many as there is room for. Nothing is changed.
func (h *Cache) Export(maxBytes int) []byte {
	h.mu.Lock()
	list := h.lru.Values() // oldest first; entries are immutable
	h.mu.Unlock()
	if maxBytes < stateHeader {
		return nil
	}
	now := h.now()
	out := make([]byte, stateHeader)
	for _, e := range slices.Backward(list) {
		age := e.age(now)
		server, err := e.server.MarshalBinary()
		if err != nil || !h.usable(e) || len(e.msg) > wire.MaxMessage {
			continue
		}
		if len(out)+entryFixed+len(server)+len(e.key)+len(e.msg) > maxBytes {
			break
		}
		// The age is measured with the monotonic clock: a wall clock that was
		// set since does not change it.
		out = binary.BigEndian.AppendUint64(out, uint64(now.Add(-age).UnixNano()))
		out = appendSized(out, server)
		out = appendSized(out, []byte(e.key))
		out = appendSized(out, e.msg)
	}
	return seal(out)
}

// seal fills in the header of out.
func seal(out []byte) []byte {
	n := copy(out, stateMagic)
	out[n] = stateVersion
	binary.BigEndian.PutUint32(out[n+1:], crc32.Checksum(out[stateHeader:], crc32.MakeTable(crc32.Castagnoli)))
	return out
}

func appendSized(dst, field []byte) []byte {
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(field))), field...)
}

// decode reads every entry, or none.
func (h *Cache) decode(data []byte) ([]*entry, error) {
	switch {
	case len(data) > maxState:
		return nil, fmt.Errorf("more than %d bytes", maxState)
	case len(data) < stateHeader || string(data[:len(stateMagic)]) != stateMagic:
		return nil, errors.New("not a cache")
	case data[len(stateMagic)] != stateVersion:
		return nil, fmt.Errorf("version %d, this agent reads %d", data[len(stateMagic)], stateVersion)
	}
	rest := data[stateHeader:]
	if binary.BigEndian.Uint32(data[len(stateMagic)+1:]) != crc32.Checksum(rest, crc32.MakeTable(crc32.Castagnoli)) {
		return nil, errors.New("the checksum is wrong")
	}
	now := h.now()
	var list []*entry
	for len(rest) > 0 {
		e, tail, err := decodeEntry(rest, now)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(list), err)
		}
		list, rest = append(list, e), tail
	}
	return list, nil
}

// decodeEntry reads the first entry of data and returns what is behind it.
func decodeEntry(data []byte, now time.Time) (*entry, []byte, error) {
	if len(data) < entryFixed {
		return nil, nil, errCut
	}
	stored := time.Unix(0, int64(binary.BigEndian.Uint64(data)))
	rest := data[8:]
	var fields [3][]byte
	for i := range fields {
		if len(rest) < 2 {
			return nil, nil, errCut
		}
		n := int(binary.BigEndian.Uint16(rest))
		if len(rest) < 2+n {
			return nil, nil, errCut
		}
		fields[i], rest = rest[2:2+n], rest[2+n:]
	}
	var server netip.AddrPort
	if err := server.UnmarshalBinary(fields[0]); err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	// With now's monotonic reading, so that its age does not change with the
	// wall clock. One from the future would never expire.
	stored = now.Add(-max(now.Sub(stored), 0))
	e, err := checkedEntry(fields[1], fields[2], server, stored)
	return e, rest, err
}

// checkedEntry makes an entry as put does, of what nobody has looked at yet.
func checkedEntry(key, msg []byte, server netip.AddrPort, stored time.Time) (*entry, error) {
	q, ok := queryOf(key)
	if !ok {
		return nil, errors.New("the key is not a question's")
	}
	if len(msg) < wire.HeaderLen || wire.FlagsOf(msg)&(wire.FlagQR|wire.Opcodes) != wire.FlagQR || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, errors.New("the message is not an answer")
	}
	msg, err := wire.Canonical(msg, q)
	if err != nil {
		return nil, err
	}
	if !wire.SameQuestion(msg[wire.HeaderLen:], q.Question()) {
		return nil, errors.New("the message answers another question")
	}
	e := newEntry(string(key), wire.Answer{Msg: msg, Source: wire.SourceUpstream, Server: server}, stored)
	if e == nil || e.ttl == 0 {
		return nil, errors.New("the message may not be kept")
	}
	return e, nil
}

// queryOf is the reverse of appendKey: the query, in lower case, that has key.
func queryOf(key []byte) (*wire.Query, bool) {
	if len(key) < keyFixed || len(key) > maxKey {
		return nil, false
	}
	msg := make([]byte, wire.HeaderLen, wire.HeaderLen+len(key)+wire.OptLen)
	flags := uint16(0)
	if key[4]&keyCD != 0 {
		flags |= wire.FlagCD
	}
	if key[4]&keyRD != 0 {
		flags |= wire.FlagRD
	}
	binary.BigEndian.PutUint16(msg[2:], flags)
	msg[5] = 1 // one question
	msg = append(msg, key[keyFixed:]...)
	msg = append(msg, key[:4]...)
	if key[4]&keyDO != 0 {
		msg = wire.AppendOPT(msg, true, 0)
	}
	q := new(wire.Query)
	if q.Parse(msg, wire.MaxMessage) != wire.AnswerIt {
		return nil, false
	}
	return q, bytes.Equal(appendKey(nil, q), key)
}

// Import takes over what Export gave in another process on this machine, and returns
// how many answers that are: those that are too old even to be given while no server
// answers, or that this cache has newer ones of, are left out. Every entry is checked as
// if an upstream had sent it. Where one is damaged, or the version is not known, nothing
// is imported and the error says why.
func (h *Cache) Import(data []byte) (entries int, err error) {
	list, err := h.decode(data)
	if err != nil {
		return 0, fmt.Errorf("import dns cache of %d bytes: %w", len(data), err)
	}
	for _, e := range slices.Backward(list) { // the one used last becomes that here
		if h.usable(e) && h.keep(e) {
			entries++
		}
	}
	return entries, nil
}
