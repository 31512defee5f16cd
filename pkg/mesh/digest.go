package mesh

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"path/filepath"
)

// Digest is a SHA-256 hash of the names and bytes of all configuration files, the same in every process. Zero is none.
type Digest [sha256.Size]byte

// MadeOf is the digest of the files that made the registry, alone: the same files make the same registry in any process with the same
// Options. It is zero where a document is in force in an earlier version, or not at all, or where a file could not be read.
func (r *Registry) MadeOf() Digest { return r.madeOf }

// Digest reads the files, and parses none. It is that of [Registry.MadeOf] after a Load of the same files.
func (s *Source) Digest() (Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, err := s.dir.list()
	if err != nil {
		return Digest{}, fmt.Errorf("read configuration directory %s: %w", s.dir.path, err)
	}
	var all digester
	for _, name := range names {
		data, _, err := readFile(filepath.Join(s.dir.path, name), s.o.maxFileBytes)
		if err != nil {
			return Digest{}, fmt.Errorf("read configuration file %s: %w", name, err)
		}
		all.add(name, sha256.Sum256(data))
	}
	return all.digest(), nil
}

// digest is that of the files as they were scanned last.
func (d *directory) digest() Digest {
	var all digester
	for _, f := range d.files {
		if f.sum == ([sha256.Size]byte{}) {
			return Digest{}
		}
		all.add(f.name, f.sum)
	}
	return all.digest()
}

// digester makes a Digest of files, which come in the order of their names.
type digester struct{ listed []byte }

func (d *digester) add(name string, sum [sha256.Size]byte) {
	d.listed = append(binary.AppendUvarint(d.listed, uint64(len(name))), name...)
	d.listed = append(d.listed, sum[:]...)
}

func (d *digester) digest() Digest { return sha256.Sum256(d.listed) }
