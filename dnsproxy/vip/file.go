package vip

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"time"

	"understudy.mesh/pkg/journal"
)

const (
	fileVersion = 1

	// maxFile bounds what is read: 65,024 hosts with the longest names are 21 MB.
	maxFile = 24 << 20

	// maxJournal bounds the journal: what a release that does not know it may miss, and what a
	// start has to read beside the file.
	maxJournal = 64 << 10

	// setAside is appended to the name of a file that cannot be used.
	setAside = ".bad"
)

// file is the file's content. Indexes count from the first address of Base,
// so that both families follow from one number.
type file struct {
	Version  int                  `json:"version"`
	Base     netip.Prefix         `json:"base"`
	Assigned map[string]uint32    `json:"assigned"`
	Freed    map[string]fileFreed `json:"freed,omitempty"`

	// Since is when each index was assigned, in Unix seconds. By index, as
	// it is there for people only, and names may be long.
	Since map[uint32]int64 `json:"since,omitempty"`
}

// record is a record of the journal: hosts as they are since.
type record struct {
	file
	Gone []string `json:"gone,omitempty"` // hosts that have nothing any more
}

type fileFreed struct {
	Index uint32    `json:"index"`
	At    time.Time `json:"at"`
}

func (f freed) inFile() fileFreed { return fileFreed{f.index, f.at.UTC().Round(0)} }

// load fills v from its file, or leaves it empty.
func (v *Pool) load() {
	v.allocation, v.compact = newAllocation(), true
	if v.store == nil {
		return
	}
	content, err := v.store.Load(maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var a allocation
	if err == nil {
		a, err = v.replay(content)
	}
	if err == nil {
		v.allocation = a
		v.compact = len(content.Records) == 0 && content.Damaged == nil
		v.compactNow() // an earlier release may be the next to read it
		return
	}
	bad := v.config.Path + setAside
	v.log.Warn("cannot use the VIP file; hosts get the address that their name's hash says",
		"file", v.config.Path, "error", err, "setAside", bad)
	if err := os.Rename(v.config.Path, bad); err != nil {
		v.log.Warn("cannot set the VIP file aside", "file", v.config.Path, "error", err)
	}
}

// replay returns the allocation that the file and the records have. Where the records make no
// sense it is that of the file alone.
func (v *Pool) replay(c journal.Content) (allocation, error) {
	whole, err := v.decode(c.Snapshot)
	if err != nil {
		return allocation{}, err
	}
	damaged := c.Damaged
	if len(c.Records) > 0 {
		if a, err := v.decode(c.Snapshot, c.Records...); err == nil {
			whole = a
		} else {
			damaged = err
		}
	}
	if damaged != nil {
		v.log.Warn("the journal of the VIP file is damaged; hosts of its last changes may get another address",
			"file", v.config.Path, "error", damaged)
	}
	return whole, nil
}

// decode returns the allocation that data has, with the changes of records.
func (v *Pool) decode(data []byte, records ...[]byte) (allocation, error) {
	if len(data) > maxFile {
		return allocation{}, fmt.Errorf("more than %d bytes", maxFile)
	}
	var file file
	if err := json.Unmarshal(data, &file); err != nil {
		return allocation{}, err
	}
	for _, data := range records {
		if err := file.apply(data); err != nil {
			return allocation{}, fmt.Errorf("apply a record: %w", err)
		}
	}
	if file.Version != fileVersion {
		return allocation{}, fmt.Errorf("version %d, this agent reads %d", file.Version, fileVersion)
	}
	if file.Base != v.config.V4 {
		return allocation{}, fmt.Errorf("addresses of %s, the range is %s", file.Base, v.config.V4)
	}
	now := v.config.Now()
	a := newAllocation()
	maps.Copy(a.assigned, file.Assigned)
	for h, f := range file.Freed {
		at := f.At
		if at.After(now) { // the clock was set back: start over
			at = now
		}
		if at.Before(time.Unix(0, 0)) { // RFC 3339 cannot say every time in UTC
			at = time.Unix(0, 0)
		}
		a.freed[h] = freed{f.Index, at}
	}
	for _, index := range a.assigned {
		if at := file.Since[index]; at > 0 {
			a.since[index] = min(at, now.Unix())
		}
	}
	return a, v.index(a)
}

// apply makes the change that a record says.
func (file *file) apply(data []byte) error {
	record := record{}
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	if file.Assigned == nil {
		file.Assigned = map[string]uint32{}
	}
	if file.Freed == nil {
		file.Freed = map[string]fileFreed{}
	}
	if file.Since == nil {
		file.Since = map[uint32]int64{}
	}
	for _, h := range record.Gone {
		delete(file.Assigned, h)
		delete(file.Freed, h)
	}
	for h, index := range record.Assigned {
		delete(file.Freed, h)
		delete(file.Since, index) // of another
		file.Assigned[h] = index
	}
	for h, f := range record.Freed {
		delete(file.Assigned, h)
		file.Freed[h] = f
	}
	maps.Copy(file.Since, record.Since)
	return nil
}

// note says that the file has something else of h.
func (v *Pool) note(h string) {
	if v.store != nil {
		v.changed[h] = struct{}{}
	}
}

// save writes what changed. It goes on without: an agent that cannot write still
// gives addresses, and says so once.
func (v *Pool) save() {
	if len(v.changed) == 0 || v.store == nil {
		return
	}
	record, err := v.encodeChanged()
	if err == nil {
		err = v.store.Append(record)
	}
	if errors.Is(err, journal.ErrRewrite) {
		v.compact = false
		v.compactNow()
		return
	}
	if v.saved(err) {
		v.compact = false
	}
}

// Compact writes the file whole, for a release that does not know the journal, if
// there is anything in that. Errors are logged and counted.
func (v *Pool) Compact() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.compactNow()
}

func (v *Pool) compactNow() {
	if v.store == nil || v.compact && len(v.changed) == 0 {
		return
	}
	data, err := v.encode()
	if err == nil {
		err = v.store.Rewrite(data)
	}
	if v.saved(err) {
		v.compact = true
	}
}

// saved notes the end of a write.
func (v *Pool) saved(err error) bool {
	if err != nil {
		v.failures++
		if !v.readOnly {
			v.log.Warn("cannot write the VIP file; addresses are kept in memory only", "file", v.config.Path, "error", err)
		}
		v.readOnly = true
		return false
	}
	v.changed = map[string]struct{}{} // anew: a cleared map stays as large as it ever was
	v.readOnly = false
	return true
}

// encodeChanged encodes what the changed hosts have.
func (v *Pool) encodeChanged() ([]byte, error) {
	r := record{file: file{Version: fileVersion, Base: v.config.V4, Assigned: map[string]uint32{}, Freed: map[string]fileFreed{}, Since: map[uint32]int64{}}}
	for h := range v.changed {
		index, assigned := v.assigned[h]
		f, left := v.freed[h]
		switch {
		case assigned:
			r.Assigned[h] = index
			if at, ok := v.since[index]; ok {
				r.Since[index] = at
			}
		case left:
			r.Freed[h] = f.inFile()
		default:
			r.Gone = append(r.Gone, h)
		}
	}
	return json.Marshal(r)
}

func (v *Pool) encode() ([]byte, error) {
	file := file{Version: fileVersion, Base: v.config.V4, Assigned: v.assigned, Since: v.since, Freed: make(map[string]fileFreed, len(v.freed))}
	for h, f := range v.freed {
		file.Freed[h] = f.inFile()
	}
	return json.Marshal(file)
}
