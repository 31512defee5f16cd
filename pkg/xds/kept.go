package xds

import (
	"fmt"
	"os"

	"understudy.mesh/internal/grpcsock"
	"understudy.mesh/pkg/xds/internal/body"
	"understudy.mesh/pkg/xds/internal/wire"
)

// kept is one version of a resource as a relay keeps it, in memory or in a file. It does not change.
type kept struct {
	name    string
	version uint64
	raw     []byte   // a field of a response to Envoy; nil: the body is in file
	file    *os.File // closed by the collector when nothing is in it any more
	at      uint32   // where the body begins in raw or in file
	size    uint32   // of the body
}

// keep takes a resource of a type.
func keep(url string, m Resource) *kept {
	k := &kept{name: m.Name, version: m.version, raw: m.raw, at: m.at, size: uint32(len(m.Body))}
	if m.raw == nil {
		k.raw = encode(url, m)
		k.at = uint32(len(k.raw)-wire.VersionSize) - k.size
	}
	return k
}

// in is the same in a file, where its body begins at a place.
func (k *kept) in(file *os.File, at uint32) *kept {
	return &kept{name: k.name, version: k.version, file: file, at: at, size: k.size}
}

// body is that of one in memory.
func (k *kept) body() []byte { return k.raw[k.at : k.at+k.size] }

// load is the same in memory.
func (k *kept) load(url string) (*kept, error) {
	if k.raw != nil {
		return k, nil
	}
	content, err := k.read(new(body.Reader))
	if err != nil {
		return nil, fmt.Errorf("read %s %q again: %w", kindOf(url), k.name, err)
	}
	return keep(url, Resource{Name: k.name, Body: content, version: k.version}), nil
}

// read is the body, valid until from reads again.
func (k *kept) read(from *body.Reader) ([]byte, error) {
	if k.raw != nil {
		return k.body(), nil
	}
	return from.Read(body.Place{File: k.file, At: k.at, Size: k.size}, k.version)
}

// reply is a response to Envoy.
type reply struct {
	url, nonce, version string
	resources           []*kept
	removed             []string
}

// frame is the message: the resources are in it as they are, and not copied.
func (r *reply) frame() *grpcsock.Frame {
	pieces := [][]byte{r.head()}
	for _, k := range r.resources {
		last := &pieces[len(pieces)-1]
		if follows(*last, k.raw) {
			*last = (*last)[:len(*last)+len(k.raw)]
		} else {
			pieces = append(pieces, k.raw)
		}
	}
	return grpcsock.NewFrame(pieces...)
}

// head is all of the message but the resources.
func (r *reply) head() []byte {
	head := wire.AppendField(wire.AppendField(wire.AppendField(nil, wire.SystemVersion, r.version), wire.Type, r.url), wire.Nonce, r.nonce)
	for _, name := range r.removed {
		head = wire.AppendField(head, wire.Removed, name)
	}
	return head
}

// follows says whether b lies behind a in the same memory.
func follows(a, b []byte) bool {
	return len(b) > 0 && cap(a)-len(a) >= len(b) && &a[:len(a)+1][len(a)] == &b[0]
}
