package dnsproxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

const (
	vipFileVersion = 1

	// maxVIPFile bounds what is read: 65,024 hosts with the longest names
	// are 21 MB.
	maxVIPFile = 24 << 20

	// setAside is appended to the name of a file that cannot be used.
	setAside = ".bad"
)

// vipFile is the file's content. Indexes count from the first address of Base,
// so that both families follow from one number.
type vipFile struct {
	Version  int                 `json:"version"`
	Base     netip.Prefix        `json:"base"`
	Assigned map[string]uint32   `json:"assigned"`
	Freed    map[string]vipFreed `json:"freed,omitempty"`

	// Since is when each index was assigned, in Unix seconds. By index, as
	// it is there for people only, and names may be long.
	Since map[uint32]int64 `json:"since,omitempty"`
}

type vipFreed struct {
	Index uint32    `json:"index"`
	At    time.Time `json:"at"`
}

// load fills v from its file, or leaves it empty.
func (v *VIPs) load() {
	v.allocation = newAllocation()
	if v.config.Path == "" {
		return
	}
	a, err := v.read()
	switch {
	case err == nil:
		v.allocation = a
	case errors.Is(err, fs.ErrNotExist):
	default:
		bad := v.config.Path + setAside
		v.log.Warn("cannot use the VIP file; hosts get the address that their name's hash says",
			"file", v.config.Path, "error", err, "setAside", bad)
		if err := os.Rename(v.config.Path, bad); err != nil {
			v.log.Warn("cannot set the VIP file aside", "file", v.config.Path, "error", err)
		}
	}
}

func (v *VIPs) read() (allocation, error) {
	// Not blocking: a FIFO of that name must not stop the start.
	f, err := os.OpenFile(v.config.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return allocation{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return allocation{}, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxVIPFile {
		return allocation{}, fmt.Errorf("not a regular file of at most %d bytes", maxVIPFile)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxVIPFile))
	if err != nil {
		return allocation{}, err
	}
	return v.decode(data)
}

// decode returns the allocation that data has.
func (v *VIPs) decode(data []byte) (allocation, error) {
	if len(data) > maxVIPFile {
		return allocation{}, fmt.Errorf("more than %d bytes", maxVIPFile)
	}
	var file vipFile
	if err := json.Unmarshal(data, &file); err != nil {
		return allocation{}, err
	}
	if file.Version != vipFileVersion {
		return allocation{}, fmt.Errorf("version %d, this agent reads %d", file.Version, vipFileVersion)
	}
	if file.Base != v.config.V4 {
		return allocation{}, fmt.Errorf("addresses of %s, the range is %s", file.Base, v.config.V4)
	}
	now := v.config.Now()
	a := newAllocation()
	maps.Copy(a.assigned, file.Assigned)
	for h, f := range file.Freed {
		at := f.At
		if at.After(now) { // the clock was set back: begin anew
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

// save writes the file when something changed. It goes on without: an agent
// that cannot write still gives addresses, and says so once.
func (v *VIPs) save() {
	if !v.unsaved || v.config.Path == "" {
		return
	}
	if err := v.write(); err != nil {
		v.failures++
		if !v.readOnly {
			v.log.Warn("cannot write the VIP file; addresses are kept in memory only", "file", v.config.Path, "error", err)
		}
		v.readOnly = true
		return
	}
	v.unsaved, v.readOnly = false, false
}

// write renames a new file over the old one: whoever reads it, another agent
// that shares the directory during an upgrade included, sees a whole one.
func (v *VIPs) write() error {
	data, err := v.encode()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(v.config.Path), filepath.Base(v.config.Path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), v.config.Path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

func (v *VIPs) encode() ([]byte, error) {
	file := vipFile{Version: vipFileVersion, Base: v.config.V4, Assigned: v.assigned, Since: v.since, Freed: make(map[string]vipFreed, len(v.freed))}
	for h, f := range v.freed {
		file.Freed[h] = vipFreed{Index: f.index, At: f.at.UTC().Round(0)}
	}
	return json.Marshal(file)
}
