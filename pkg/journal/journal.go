// Package journal owns a state that is kept in two files: a snapshot, whole and in whatever form
// its owner chooses, and beside it the records of what has changed since. A small change of a
// large state is then a small write, and who knows only the snapshot finds it in its old form.
//
// Every record has a checksum, and the journal says of which snapshot it is the continuation: a
// snapshot that somebody else has written makes it void. Nothing is synced to disk: the state
// lives as long as the pod, and a node that crashes ends the pod.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
	"io"
	"io/fs"
	"os"
	"syscall"

	"understudy.mesh/internal/atomicfile"
)

const (
	// suffix makes the journal's name out of the snapshot's.
	suffix = ".journal"
	// frame is what precedes each record: its length, and a checksum of length and record.
	frame = 8
	// magic and the checksum of the snapshot are the first record.
	magic = "understudy journal 1\n"
)

var (
	records   = crc32.MakeTable(crc32.Castagnoli)
	snapshots = crc64.MakeTable(crc64.ECMA)
)

// ErrRewrite says that a record cannot be appended, and that Rewrite is what helps: there is no
// snapshot of this store's yet, somebody else has written one, or the journal is full.
var ErrRewrite = errors.New("the journal needs a new snapshot")

// Store is one state on disk. It is made by New, and not safe for concurrent use; other processes may
// use the same files, and the last that wrote a snapshot wins.
type Store struct {
	path     string
	limit    int64
	snapshot os.FileInfo // what Rewrite wrote; nil before
	sum      uint64      // of it
	journal  os.FileInfo // what Append made; nil before the first record since Rewrite
	size     int64       // of the journal
}

// New returns a store for the snapshot at path. limit is the size in bytes at which the journal is
// full. It touches no file.
func New(path string, limit int64) *Store { return &Store{path: path, limit: limit} }

// Content is what a store has on disk.
type Content struct {
	Snapshot []byte
	Records  [][]byte // appended since, in their order
	// Damaged says why the journal ends with Records although there is more of it; nil when it
	// was whole.
	Damaged error
}

// Load reads the store. No file may be longer than most bytes. Without a snapshot the
// error is fs.ErrNotExist; it is about the snapshot only.
func (s *Store) Load(most int64) (Content, error) {
	snapshot, err := atomicfile.Read(s.path, most)
	if err != nil {
		return Content{}, err
	}
	c := Content{Snapshot: snapshot}
	data, err := atomicfile.Read(s.path+suffix, most)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		c.Records, err = parse(data, crc64.Checksum(snapshot, snapshots))
	}
	if err != nil {
		c.Damaged = fmt.Errorf("read %s after %d records: %w", s.path+suffix, len(c.Records), err)
	}
	return c, nil
}

// parse returns the records of a journal that continues the snapshot with the checksum sum, and why
// there are no more. A journal that continues another snapshot has none.
func parse(data []byte, sum uint64) (all [][]byte, err error) {
	first, data, err := next(data)
	if err != nil {
		return nil, err
	}
	if string(first) != string(header(sum)) {
		return nil, nil // of a snapshot that was replaced
	}
	for len(data) > 0 {
		var record []byte
		if record, data, err = next(data); err != nil {
			return all, err
		}
		all = append(all, record)
	}
	return all, nil
}

// next takes the first record from data.
func next(data []byte) (record, rest []byte, err error) {
	if len(data) < frame {
		return nil, nil, fmt.Errorf("a record is cut off: %w", io.ErrUnexpectedEOF)
	}
	n := binary.LittleEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-frame) {
		return nil, nil, fmt.Errorf("a record of %d bytes is cut off after %d: %w", n, len(data)-frame, io.ErrUnexpectedEOF)
	}
	record = data[frame : frame+int(n)]
	if binary.LittleEndian.Uint32(data[4:]) != checksum(data[:4], record) {
		return nil, nil, errors.New("the checksum of a record is wrong")
	}
	return record, data[frame+int(n):], nil
}

func checksum(length, record []byte) uint32 {
	return crc32.Update(crc32.Checksum(length, records), records, record)
}

func header(sum uint64) []byte { return binary.LittleEndian.AppendUint64([]byte(magic), sum) }

// framed appends record with its frame to data.
func framed(data, record []byte) []byte {
	begin := len(data)
	data = binary.LittleEndian.AppendUint32(data, uint32(len(record)))
	data = binary.LittleEndian.AppendUint32(data, checksum(data[begin:], record))
	return append(data, record...)
}

// Append adds a record. After an error the files are as they were; ErrRewrite says that
// they need a Rewrite first.
func (s *Store) Append(record []byte) error {
	if s.snapshot == nil || s.size+frame+int64(len(record)) > s.limit {
		return ErrRewrite
	}
	now, err := os.Lstat(s.path)
	if err != nil || !same(now, s.snapshot) || !now.ModTime().Equal(s.snapshot.ModTime()) {
		return ErrRewrite // somebody else's, or gone
	}
	if s.journal == nil {
		return s.begin(record)
	}
	f, err := os.OpenFile(s.path+suffix, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrRewrite
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if now, err = f.Stat(); err != nil || !os.SameFile(now, s.journal) || now.Size() != s.size {
		return ErrRewrite
	}
	data := framed(nil, record)
	if _, err := f.Write(data); err != nil {
		if f.Truncate(s.size) != nil {
			s.snapshot = nil // it ends in half a record, which would hide all later ones
		}
		return err
	}
	s.size += int64(len(data))
	return nil
}

// begin makes the journal, with its first record.
func (s *Store) begin(record []byte) error {
	data := framed(framed(nil, header(s.sum)), record)
	info, err := replace(s.path+suffix, data)
	if err != nil {
		return err
	}
	s.journal, s.size = info, int64(len(data))
	return nil
}

// Rewrite puts a snapshot in the place of the one before and of all records. After an error the
// files are as they were.
func (s *Store) Rewrite(snapshot []byte) error {
	info, err := replace(s.path, snapshot)
	if err != nil {
		return err
	}
	s.snapshot, s.sum, s.journal, s.size = info, crc64.Checksum(snapshot, snapshots), nil, 0
	_ = os.Remove(s.path + suffix) // it is void, and as such ignored where it stays
	return nil
}

// replace puts data in place of a file.
func replace(path string, data []byte) (os.FileInfo, error) {
	return atomicfile.Replace(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// same tells whether two descriptions are of one file with one length.
func same(a, b os.FileInfo) bool { return os.SameFile(a, b) && a.Size() == b.Size() }
