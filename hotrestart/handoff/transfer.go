package handoff

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.mesh/hotrestart"
)

// Limits of what one hand-off carries: far above any pod's, and far below what would
// hurt one.
const (
	maxStatePart  = 48 << 10 // leaves room for the head of the frame
	maxComponent  = 16 << 20
	maxState      = 64 << 20
	maxComponents = 64
	maxSockets    = 16384
	maxNameLength = 256 // 64 names and as many that are gone fit one frame
)

// State is what the components of a generation want their successors to know, by the
// component's name: opaque bytes. A component that the receiver does not know is to be
// ignored.
type State map[string][]byte

// Size is the number of bytes of all components.
func (s State) Size() (total int) {
	for _, data := range s {
		total += len(data)
	}
	return total
}

// Fit leaves out of s what is too large to be handed over: each component that is by itself, and of
// the rest as many as it takes, the first of dispensable first. It returns the sizes of what is gone
// in bytes, by name.
func (s State) Fit(dispensable ...string) map[string]int {
	gone := map[string]int{}
	leaveOut := func(name string) {
		gone[name] = len(s[name])
		delete(s, name)
	}
	for name, data := range s {
		if len(data) > maxComponent {
			leaveOut(name)
		}
	}
	for _, name := range dispensable {
		if _, ok := s[name]; ok && s.Size() > maxState {
			leaveOut(name)
		}
	}
	return gone
}

// check bounds s, before anything is sent.
func (s State) check() error {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		data := s[name]
		if err := checkName(name); err != nil {
			return fmt.Errorf("state: %w", err)
		}
		if len(data) > maxComponent {
			return fmt.Errorf("state of %s: %d bytes, at most %d: leave it out", name, len(data), maxComponent)
		}
	}
	if total := s.Size(); len(s) > maxComponents || total > maxState {
		return fmt.Errorf("state: %d components, %d bytes: at most %d and %d", len(s), total, maxComponents, maxState)
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > maxNameLength {
		return fmt.Errorf("name %.40q of %d bytes: 1 to %d", name, len(name), maxNameLength)
	}
	return nil
}

// sendState writes s in parts, sorted by name, and the end mark; files have been written before.
func sendState(l *link, s State, files int) error {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		data := s[name]
		for first := true; first || len(data) > 0; first = false {
			f, err := newFrame(msgState, stateHead{name})
			if err != nil {
				return err
			}
			part := min(len(data), maxStatePart)
			f.body, data = data[:part], data[part:]
			if err := l.sendFrame(f); err != nil {
				return err
			}
		}
	}
	return l.send(msgStateEnd, stateEndHead{len(s) + files})
}

// stateReader puts the parts together again.
type stateReader struct {
	state State
	files Files
	total int
}

func (r *stateReader) add(f frame) error {
	head, err := decodeHead[stateHead](f)
	if err == nil {
		err = checkName(head.Component)
	}
	if err == nil && len(r.state) > maxComponents {
		err = fmt.Errorf("more than %d components", maxComponents)
	}
	if err != nil {
		f.closeDescriptors()
		return fmt.Errorf("read state: %w", err)
	}
	if len(f.fds) > 0 {
		return r.addFile(head.Component, f)
	}
	if r.state == nil {
		r.state = State{}
	}
	r.total += len(f.body)
	if r.total > maxState || len(r.state[head.Component])+len(f.body) > maxComponent {
		return fmt.Errorf("read state of %s: more than %d bytes, or %d in all", head.Component, maxComponent, maxState)
	}
	r.state[head.Component] = append(r.state[head.Component], f.body...)
	return nil
}

// end checks the end mark and returns the whole; never nil.
func (r *stateReader) end(f frame) (State, error) {
	head, err := decodeHead[stateEndHead](f)
	if err != nil {
		return nil, err
	}
	if came := len(r.state) + len(r.files); head.Components != came {
		return nil, fmt.Errorf("read state: %d components came, %d were sent", came, head.Components)
	}
	if r.state == nil {
		return State{}, nil
	}
	return r.state, nil
}

// given remembers which sockets the peer has, by the inode of each: a listener that
// went and came back under its name is another socket.
type given map[string]uint64

// sendSockets brings the peer from what it has to all, and updates g. all stays the
// caller's, unchanged.
func (g given) sendSockets(l *link, all *hotrestart.Sockets) error {
	now := given{}
	var names []string
	var fds []int
	err := all.Each(func(name string, fd int) error {
		var stat unix.Stat_t
		if err := unix.Fstat(fd, &stat); err != nil {
			return fmt.Errorf("hand over %q: fstat: %w", name, err)
		}
		if now[name] = stat.Ino; g[name] != stat.Ino {
			names, fds = append(names, name), append(fds, fd)
		}
		return nil
	})
	if err != nil {
		return err
	}
	var gone []string
	for _, name := range slices.Sorted(maps.Keys(g)) {
		if now[name] != g[name] {
			gone = append(gone, name)
		}
	}
	end := socketsEndHead{Count: len(names), Gone: len(gone)}
	for len(gone) > 0 || len(names) > 0 {
		leaving, arriving := min(len(gone), maxFrameSockets), min(len(names), maxFrameSockets)
		f, err := newFrame(msgSockets, socketsHead{Names: names[:arriving], Gone: gone[:leaving]})
		if err != nil {
			return err
		}
		f.fds = fds[:arriving]
		if err := l.sendFrame(f); err != nil {
			return err
		}
		gone, names, fds = gone[leaving:], names[arriving:], fds[arriving:]
	}
	if err := l.send(msgSocketsEnd, end); err != nil {
		return err
	}
	clear(g)
	maps.Copy(g, now)
	return nil
}

// checkSockets bounds a set, before anything of it is sent.
func checkSockets(s *hotrestart.Sockets) error {
	names := s.Names()
	if len(names) > maxSockets {
		return fmt.Errorf("hand over %d sockets: at most %d", len(names), maxSockets)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return fmt.Errorf("hand over a socket: %w", err)
		}
	}
	return nil
}

// socketReader collects sockets until the end mark, and only then touches a set. A name
// that is gone and comes is a new socket.
type socketReader struct {
	fresh hotrestart.Sockets
	gone  []string
}

// add takes the descriptors of f over, also when it fails.
func (r *socketReader) add(f frame) error {
	fds := f.fds
	head, err := decodeHead[socketsHead](f)
	if err == nil && len(head.Names) != len(fds) {
		err = fmt.Errorf("read sockets: %d names, %d descriptors", len(head.Names), len(fds))
	}
	if err == nil && (r.fresh.Len()+len(fds) > maxSockets || len(r.gone)+len(head.Gone) > maxSockets) {
		err = fmt.Errorf("read sockets: more than %d", maxSockets)
	}
	if err != nil {
		f.closeDescriptors()
		return err
	}
	r.gone = append(r.gone, head.Gone...)
	for i, name := range head.Names {
		// Both are always done: what is in neither set would leak.
		err = errors.Join(err, checkName(name), r.fresh.AddDescriptor(name, fds[i]))
	}
	return err
}

// end checks the end mark and moves everything into the set.
func (r *socketReader) end(f frame, into *hotrestart.Sockets) error {
	head, err := decodeHead[socketsEndHead](f)
	if err != nil {
		return err
	}
	names := r.fresh.Names()
	if head.Count != len(names) || head.Gone != len(r.gone) {
		return fmt.Errorf("read sockets: %d and %d gone came, %d and %d were sent", len(names), len(r.gone), head.Count, head.Gone)
	}
	for _, name := range names {
		if slices.Contains(into.Names(), name) && !slices.Contains(r.gone, name) {
			return fmt.Errorf("read sockets: %q was there already", name)
		}
	}
	err = into.Retain(func(name string) bool { return !slices.Contains(r.gone, name) })
	for _, name := range names {
		fd, copyErr := r.fresh.Copy(name)
		if copyErr == nil {
			copyErr = into.AddDescriptor(name, fd)
		}
		err = errors.Join(err, copyErr)
	}
	return errors.Join(err, r.fresh.Close())
}
