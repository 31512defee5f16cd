package files

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/mesh"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

// parsePatience is how long an Envoy may take to answer for what the same files have made before, until they are parsed all the same:
// one that hangs may need another configuration.
const parsePatience = 30 * time.Second

// recalled is what a file has.
type recalled struct {
	of       mesh.Digest
	snapshot *publish.Snapshot
	wanting  []string
	declared []netip.Prefix
	// taken is closed by noteTaken, once Envoy has answered for it.
	taken     chan struct{}
	noteTaken func()
}

// restart is how far a start is with what was kept.
type restart struct {
	// succeeds says that there is a generation before.
	succeeds bool
	// recalled is what next is to return first, nil: what the files make. It was made of them before.
	recalled atomic.Pointer[recalled]
	// unchecked is what Envoy was given of it, until it is known what the files make.
	unchecked *recalled
	// checked says that it has just become known: what it took is garbage once Envoy has answered.
	checked bool
	// making is what next has returned last; nil: nothing that the files have made.
	making *made
}

// begin gives Envoy what the same files have made before, if that was kept, and leaves it the processor until it has answered.
func (f *Files) begin(ctx context.Context) {
	r := f.recall()
	if r == nil {
		return
	}
	f.recalled.Store(r)
	f.latest.changed <- struct{}{} // nothing else has put one there
	select {
	case <-ctx.Done():
	case <-r.taken:
	case <-time.After(parsePatience):
	}
}

// noteAnswer takes in that Envoy has answered for what next has returned last, and took all of it or not.
func (f *Files) noteAnswer(all bool) {
	if f.unchecked != nil {
		f.unchecked.noteTaken()
	}
	if f.checked && f.c.GiveBack != nil {
		f.c.GiveBack()
	}
	f.checked = false
	if all {
		f.compiled.inForce(f.making)
	} else {
		f.compiled.inForce(nil) // until a retry is taken
	}
}

// recall is what the same files have made before, nil if nobody has kept it: then they are parsed.
func (f *Files) recall() *recalled {
	if f.succeeds || f.compiled.path == "" {
		return nil
	}
	of, err := f.source.Digest()
	if err != nil {
		return nil // Load says it
	}
	r, err := f.compiled.load(of)
	if err == nil && !f.hasVIPs(r) {
		err = errors.New("hosts have other VIPs")
	}
	switch {
	case err == nil:
		f.log.Info("Envoy starts with what the same files have made before", "file", f.compiled.path)
		return r
	case errors.Is(err, fs.ErrNotExist): // the first start of the pod
	default:
		f.log.Info("the configuration files are parsed: what was kept of them is not used", "file", f.compiled.path, "reason", err)
	}
	return nil
}

// hasVIPs says whether all hosts that had VIPs have the same.
func (f *Files) hasVIPs(r *recalled) bool {
	vips, err := f.c.VIPs.Assign(r.wanting, r.declared...)
	had := make(map[string][]netip.Addr, len(r.snapshot.Hosts))
	for _, h := range r.snapshot.Hosts {
		had[h.Name] = h.Addrs
	}
	return err == nil && !slices.ContainsFunc(r.wanting, func(host string) bool {
		now := slices.DeleteFunc(slices.Clone(vips[host]), func(a netip.Addr) bool { return !f.c.Options.HasFamily(a) })
		return !slices.Equal(now, had[host])
	})
}

// check compares what was recalled with what the same files make. Envoy gets the difference as it gets every change.
func (f *Files) check(r *recalled, now *made) {
	now.recalled = r.of == now.registry.MadeOf() && unchanged(r.snapshot, now.snapshot)
	if r.of == now.registry.MadeOf() && !now.recalled {
		f.log.Warn("what was kept of the files is not what they make: Envoy gets what they make", "file", f.compiled.path)
	}
}

// unchanged says whether two have the same resources and hosts.
func unchanged(a, b *publish.Snapshot) bool {
	for _, url := range build.Types() {
		if !slices.EqualFunc(a.Resources[url], b.Resources[url], func(x, y *xds.Stored) bool { return x.Name == y.Name && x.Equal(y) }) {
			return false
		}
	}
	return slices.EqualFunc(a.Hosts, b.Hosts, func(x, y table.Host) bool {
		return x.Name == y.Name && x.VIP == y.VIP && x.Forwarded == y.Forwarded && slices.Equal(x.Addrs, y.Addrs)
	})
}
