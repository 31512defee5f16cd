package table

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// shardCount divides a map so that a change copies one part of it: of 100,000
// names that is 400, some 20 KiB.
const shardCount = 256

// shards is an immutable map from byte strings to byte strings. Another one that
// differs little shares most of its memory. It has two pointers for each shard
// and none for each entry, so that the garbage collector does not see the
// entries, and a look-up touches two lines of memory.
type shards struct {
	seed maphash.Seed
	part [shardCount]*shard // nil: empty
	n    int
}

// shard is a hash table with open addressing over records that stand one behind
// the other: the key's length in one byte, the value's in four, key, value.
type shard struct {
	slots []slot // a power of two, at most half of them used
	data  []byte
	n     int
}

type slot struct {
	tag uint32 // a part of the key's hash
	at  uint32 // 1 + where its record is; 0: free
}

const recordHead = 1 + 4

// change is what with does to one key.
type change struct {
	key, value []byte // value nil: the key goes
	hash       uint64
}

func (c change) shard() uint64 { return c.hash % shardCount }

func newShards() *shards { return &shards{seed: maphash.MakeSeed()} }

// get returns key's value, nil when there is none. Nobody writes to it.
func (m *shards) get(key []byte) []byte {
	hash := maphash.Bytes(m.seed, key)
	s := m.part[hash%shardCount]
	if s == nil {
		return nil
	}
	return s.get(hash, key)
}

func (s *shard) len() int {
	if s == nil {
		return 0
	}
	return s.n
}

func tagOf(hash uint64) uint32 { return uint32(hash >> 32) }

func (s *shard) get(hash uint64, key []byte) []byte {
	mask, tag := uint32(len(s.slots)-1), tagOf(hash)
	for i := tag & mask; s.slots[i].at != 0; i = (i + 1) & mask {
		if s.slots[i].tag != tag {
			continue
		}
		record, _ := next(s.data[s.slots[i].at-1:])
		if k, v := split(record); bytes.Equal(k, key) {
			return v
		}
	}
	return nil
}

// split returns a record's key and value.
func split(record []byte) (key, value []byte) {
	n := recordHead + int(record[0])
	return record[recordHead:n:n], record[n:]
}

// next returns the record that data begins with, and what is behind it.
func next(data []byte) (record, rest []byte) {
	n := recordHead + int(data[0]) + int(binary.BigEndian.Uint32(data[1:]))
	return data[:n:n], data[n:]
}

// all calls do with every key and value, in no order that means something.
func (m *shards) all(do func(key, value []byte)) {
	for _, s := range m.part {
		if s == nil {
			continue
		}
		for data := s.data; len(data) > 0; {
			var record []byte
			record, data = next(data)
			do(split(record))
		}
	}
}

// with returns the map in which the changes, at most one a key, have been made.
// It sorts them.
func (m *shards) with(changes []change) *shards {
	if len(changes) == 0 {
		return m
	}
	for i := range changes {
		changes[i].hash = maphash.Bytes(m.seed, changes[i].key)
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.shard(), b.shard()) })
	out := *m
	for len(changes) > 0 {
		at, n := changes[0].shard(), 1
		for n < len(changes) && changes[n].shard() == at {
			n++
		}
		old := m.part[at]
		out.part[at] = m.rebuild(old, changes[:n])
		out.n += out.part[at].len() - old.len()
		changes = changes[n:]
	}
	return &out
}

// rebuild returns old, which may be nil, after the changes; nil when nothing is
// left of it.
func (m *shards) rebuild(old *shard, changes []change) *shard {
	old = cmp.Or(old, new(shard))
	data := old.data
	size := len(data)
	for _, c := range changes {
		size += recordHead + len(c.key) + len(c.value)
	}
	s := newShard(old.n+len(changes), size)
	for len(data) > 0 {
		var record []byte
		record, data = next(data)
		key, value := split(record)
		hash := maphash.Bytes(m.seed, key)
		if !slices.ContainsFunc(changes, func(c change) bool { return c.hash == hash && bytes.Equal(c.key, key) }) {
			s.add(hash, key, value)
		}
	}
	for _, c := range changes {
		if c.value != nil {
			s.add(c.hash, c.key, c.value)
		}
	}
	if s.n == 0 {
		return nil
	}
	return s
}

// newShard returns an empty one with room for n records of size bytes in all.
func newShard(n, size int) *shard {
	slots := 2
	for slots < 2*n {
		slots *= 2
	}
	return &shard{slots: make([]slot, slots), data: make([]byte, 0, size)}
}

// add puts in a key that is not there, while the shard is being made.
func (s *shard) add(hash uint64, key, value []byte) {
	at := len(s.data)
	s.data = append(s.data, byte(len(key)))
	s.data = binary.BigEndian.AppendUint32(s.data, uint32(len(value)))
	s.data = append(append(s.data, key...), value...)
	mask, tag := uint32(len(s.slots)-1), tagOf(hash)
	i := tag & mask
	for s.slots[i].at != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = slot{tag: tag, at: uint32(at + 1)}
	s.n++
}
