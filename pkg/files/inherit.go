package files

import (
	"bufio"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/pkg/ecds"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

// fieldResourceName is the number of the name in Envoy's Cluster, Listener and TypedExtensionConfig.
const fieldResourceName protowire.Number = 1

// discardUnreadable takes from snap what no release can have meant: a resource whose body is no
// message or has another name, and one that comes twice. It returns their names. What Envoy
// itself does not take of the rest, it refuses by name.
func discardUnreadable(snap *publish.Snapshot) (bad []string) {
	for _, url := range build.Types() {
		seen := make(map[string]bool)
		snap.Resources[url] = slices.DeleteFunc(snap.Resources[url], func(m *xds.Stored) bool {
			name := ""
			body, err := m.Body()
			if err == nil {
				err = eachField(body, func(number protowire.Number, value []byte, _ uint64) error {
					if number == fieldResourceName {
						name = string(value)
					}
					return nil
				})
			}
			if err == nil && name == m.Name && !seen[name] {
				seen[name] = true
				return false
			}
			bad = append(bad, m.Name)
			return true
		})
	}
	return bad
}

// extensionsOf are those of a snapshot, which were in memory when they were read.
func extensionsOf(snap *publish.Snapshot) (out []xds.Resource) {
	for _, r := range snap.Resources[build.ExtensionType] {
		body, err := r.Body()
		if err == nil {
			out = append(out, xds.NewResource(r.Name, body))
		}
	}
	return out
}

// setExtensions makes list those of a snapshot.
func setExtensions(snap xds.Snapshot, list []xds.Resource) {
	if len(list) == 0 {
		return
	}
	snap[build.ExtensionType] = make([]*xds.Stored, len(list))
	for i, r := range list {
		snap[build.ExtensionType][i] = r.Stored()
	}
}

// Export is what a successor is told as it arrives: all that warms it, by component. Its Envoy accepts connections as soon as it is
// warm, in an order of its own: until it has let go, or Alone, a name that is new waits.
func (f *Files) Export() map[string][]byte {
	state := map[string][]byte{stateVIPs: f.exportVIPs()}
	if snap := f.publisher.Published(); snap != nil {
		if sizeOf(snap) <= f.inline {
			resources, err := marshalSnapshot(snap)
			if err != nil {
				f.log.Error("the next generation starts as if there were none before it", "err", err)
			} else {
				state[StateResources] = resources
			}
		}
		f.publisher.Beside(snap.Hosts, publish.HoldLimit)
	}
	state[stateFilters] = f.filters.export()
	if wasm := f.wasm.Export(); wasm != nil {
		state[ecds.Component] = wasm
	}
	return state
}

// ExportLast is what a successor is told as this generation lets go: what must not
// have changed behind its back since it arrived.
func (f *Files) ExportLast() map[string][]byte {
	state := map[string][]byte{stateVIPs: f.exportVIPs()}
	if snap := f.publisher.Published(); snap != nil {
		state[stateNames], _ = marshalSnapshot(&publish.Snapshot{Hosts: snap.Hosts}) // which has nothing that is read
		f.publisher.Beside(snap.Hosts, 0)                                            // the successor has the names that come from now on
	}
	return state
}

func (f *Files) exportVIPs() []byte {
	f.c.VIPs.Compact() // the successor may be a release that finds no change in a journal
	return f.c.VIPs.Export()
}

// maxInline is how large a component may be that is told in messages; a larger one is a file, for a successor that takes such.
const maxInline = 16 << 20

// sizeOf is about how many bytes marshalSnapshot makes.
func sizeOf(snap *publish.Snapshot) (size int) {
	const more = 16 // of tags and lengths, and of a host its addresses
	for _, list := range snap.Resources {
		for _, r := range list {
			size += len(r.Name) + r.Size() + more
		}
	}
	for _, h := range snap.Hosts {
		size += len(h.Name) + 3*more
	}
	return size
}

// ExportFiles are the resources, if they are too large for Export.
func (f *Files) ExportFiles() map[string]func(io.Writer) error {
	snap := f.publisher.Published()
	if snap == nil || sizeOf(snap) <= f.inline {
		return nil
	}
	return map[string]func(io.Writer) error{StateSnapshot: func(w io.Writer) error {
		out := bufio.NewWriterSize(w, writeBuffer)
		if err := (&snapshotWriter{to: out}).write(snap); err != nil {
			return err
		}
		return out.Flush()
	}}
}

// Import takes over what the generation before exported: Envoy starts with the resources that it had
// last, and what the files say then is a change of these. What cannot be read is left out; the files
// say it as well. It must be called before Publish.
func (f *Files) Import(state map[string][]byte, open func(component string) io.Reader) {
	f.succeeds = true
	var running []xds.Resource
	if snap, exact, err := inheritedOf(state, open); err != nil {
		f.log.Warn("Envoy starts without them", "err", err)
	} else if snap != nil {
		if bad := discardUnreadable(snap); len(bad) > 0 {
			f.log.Warn("Envoy starts without resources of the generation before that cannot be read", "names", bad)
		}
		f.inherited, running = snap, extensionsOf(snap)
		f.publisher.Beside(snap.Hosts, 0)
		if exact {
			f.before.Store(snap)
		}
	}
	f.filters.inherit(state[stateFilters])
	f.wasm.Import(state[ecds.Component], running)
	f.importVIPs(state)
}

// inheritedOf is the snapshot in what the generation before exported, nil if there is none.
func inheritedOf(state map[string][]byte, open func(component string) io.Reader) (snap *publish.Snapshot, exact bool, err error) {
	data, told := state[StateResources]
	if from := open(StateSnapshot); from != nil {
		told = true
		if data, err = io.ReadAll(from); err != nil {
			return nil, false, fmt.Errorf("read the resources of the generation before: %w", err)
		}
	}
	if !told {
		return nil, false, nil
	}
	return unmarshalSnapshot(data)
}

// ImportLast takes over what may have changed up to the moment at which the generation before let go. From then on that one
// changes nothing, and until Alone its Envoy accepts as well: a name that is new waits. A release that does not say which
// names it answers has some that are newer than what it said as this one arrived.
func (f *Files) ImportLast(state map[string][]byte) {
	f.importVIPs(state)
	if data, ok := state[stateNames]; ok {
		snap, _, err := unmarshalSnapshot(data)
		if err == nil {
			f.publisher.Beside(snap.Hosts, 0)
			return
		}
		f.log.Warn("names may lead nowhere until the generation before drains", "err", err)
	}
	f.publisher.Alone()
}

// Alone says that no Envoy of another generation accepts: names wait for none any more.
func (f *Files) Alone() { f.publisher.Alone() }

// importVIPs brings the same files into force once more when VIPs are others than before.
func (f *Files) importVIPs(state map[string][]byte) {
	data, ok := state[stateVIPs]
	if !ok {
		return
	}
	changed, err := f.c.VIPs.Import(data)
	if err != nil {
		f.log.Warn("the VIPs of the generation before are not taken over: those in the file are in force", "err", err)
	}
	if changed {
		f.latest.again()
	}
}
