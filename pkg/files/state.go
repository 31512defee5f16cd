package files

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/dnsproxy/table"
	"understudy.mesh/pkg/mesh/build"
	"understudy.mesh/pkg/publish"
	"understudy.mesh/pkg/xds"
)

// Components of what a generation tells its successor. A released name keeps its meaning:
// another form of the same thing gets another name.
const (
	// stateVIPs is vip.Pool.Export: who has which VIP, and which are in quarantine.
	stateVIPs = "vips"
	// StateResources is what marshalSnapshot writes.
	StateResources = "resources"
	// StateSnapshot is the same as a file, where it is larger than a component may be.
	StateSnapshot = "snapshot"
	// stateNames is what marshalSnapshot writes of the names alone that DNS answers.
	stateNames = "names"
	// stateFilters is the EnvoyFilters that Envoy has taken: namespace/name, a line each.
	stateFilters = "envoyfilters"
)

// Fields of the serialized resources: clusters, listeners and extensions are messages of a name and
// a body, hosts of a name, addresses and whether these are VIPs.
const (
	fieldCluster  protowire.Number = 1
	fieldListener protowire.Number = 2
	fieldHost     protowire.Number = 3
	// fieldForwarded is the name of a host without an address, which a release that does not
	// know the field would not take among the others.
	fieldForwarded protowire.Number = 4
	// fieldExact is a varint: not 0 when Envoy uses all these resources, refused ones are left
	// out, and those are there to which answers within their TTL may lead.
	fieldExact protowire.Number = 5
	// fieldExtension and fieldNaming, a listener that names an extension, are unknown to releases without extensions: their Envoy
	// would serve such a listener with what stands in an extension's place. It begins without.
	fieldExtension protowire.Number = 6
	fieldNaming    protowire.Number = 7

	fieldName protowire.Number = 1
	fieldBody protowire.Number = 2 // of a cluster, a listener
	fieldAddr protowire.Number = 2 // of a host, 4 or 16 bytes, repeated
	fieldVIP  protowire.Number = 3 // of a host, varint
)

// marshalSnapshot serializes what Envoy uses and the names that DNS answers, in the wire format of
// protobuf, so that a release that knows more can add fields.
func marshalSnapshot(snap *publish.Snapshot) ([]byte, error) {
	var b bytes.Buffer
	err := (&snapshotWriter{to: &b}).write(snap)
	return b.Bytes(), err
}

// snapshotWriter writes what marshalSnapshot makes, piece by piece: the whole is several times what a collector is to find.
type snapshotWriter struct {
	to     io.Writer
	at     int64                             // what was written
	placed func(r *xds.Stored, begins int64) // is told where the body of each resource begins; nil: nobody wants to know

	bodies       xds.Bodies
	field, inner []byte // are used again
}

// put writes inner as a field.
func (w *snapshotWriter) put(number protowire.Number) error {
	w.field = appendBytes(w.field[:0], number, w.inner)
	n, err := w.to.Write(w.field)
	w.at += int64(n)
	return err
}

// resource writes one.
func (w *snapshotWriter) resource(number protowire.Number, r *xds.Stored, extensions []*xds.Stored) error {
	body, err := w.bodies.Of(r)
	if err != nil {
		return err
	}
	if number == fieldListener && names(body, extensions) {
		number = fieldNaming
	}
	w.inner = appendBytes(appendBytes(w.inner[:0], fieldName, r.Name), fieldBody, body)
	if err = w.put(number); err == nil && w.placed != nil {
		w.placed(r, w.at-int64(r.Size()))
	}
	return err
}

func (w *snapshotWriter) host(h table.Host) error {
	if len(h.Addrs) == 0 {
		w.inner = append(w.inner[:0], h.Name...)
		return w.put(fieldForwarded)
	}
	w.inner = appendBytes(w.inner[:0], fieldName, h.Name)
	for _, a := range h.Addrs {
		w.inner = appendBytes(w.inner, fieldAddr, a.AsSlice())
	}
	if h.VIP {
		w.inner = appendTrue(w.inner, fieldVIP)
	}
	return w.put(fieldHost)
}

func (w *snapshotWriter) write(snap *publish.Snapshot) error {
	for _, messages := range []struct {
		number    protowire.Number
		resources []*xds.Stored
	}{{fieldCluster, snap.Resources[build.ClusterType]}, {fieldListener, snap.Resources[build.ListenerType]}, {fieldExtension, snap.Resources[build.ExtensionType]}} {
		for _, m := range messages.resources {
			if err := w.resource(messages.number, m, snap.Resources[build.ExtensionType]); err != nil {
				return err
			}
		}
	}
	for _, h := range snap.Hosts {
		if err := w.host(h); err != nil {
			return err
		}
	}
	n, err := w.to.Write(appendTrue(w.field[:0], fieldExact))
	w.at += int64(n)
	return err
}

// names says whether a listener may name one of the extensions.
func names(listener []byte, extensions []*xds.Stored) bool {
	return slices.ContainsFunc(extensions, func(e *xds.Stored) bool { return bytes.Contains(listener, []byte(e.Name)) })
}

func appendBytes[T string | []byte](b []byte, number protowire.Number, value T) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return append(protowire.AppendVarint(b, uint64(len(value))), value...)
}

func appendTrue(b []byte, number protowire.Number) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), 1)
}

// errState says that a component is not what its name promises.
var errState = errors.New("not what this release understands")

// unmarshalSnapshot reads what marshalSnapshot wrote, here or in another release. Fields
// that it does not know are skipped. exact says that Envoy used precisely what is in it.
func unmarshalSnapshot(b []byte) (snap *publish.Snapshot, exact bool, err error) {
	snap = &publish.Snapshot{Resources: xds.Snapshot{}}
	err = eachField(b, func(number protowire.Number, value []byte, n uint64) error {
		switch number {
		case fieldCluster, fieldListener, fieldNaming, fieldExtension:
			m, err := unmarshalMessage(value)
			if err != nil {
				return err
			}
			url := map[protowire.Number]string{fieldCluster: build.ClusterType, fieldListener: build.ListenerType, fieldNaming: build.ListenerType, fieldExtension: build.ExtensionType}[number]
			snap.Resources[url] = append(snap.Resources[url], m)
		case fieldHost:
			h, err := unmarshalHost(value)
			if err != nil {
				return err
			}
			snap.Hosts = append(snap.Hosts, h)
		case fieldForwarded:
			snap.Hosts = append(snap.Hosts, table.Host{Name: string(value), Forwarded: true})
		case fieldExact:
			exact = n != 0
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the resources of the generation before: %w", err)
	}
	return snap, exact, nil
}

func unmarshalMessage(b []byte) (*xds.Stored, error) {
	var name, body []byte
	err := eachField(b, func(number protowire.Number, value []byte, _ uint64) error {
		switch number {
		case fieldName:
			name = value
		case fieldBody:
			body = value
		}
		return nil
	})
	if err == nil && len(name) == 0 {
		err = fmt.Errorf("a resource without a name: %w", errState)
	}
	return xds.NewStored(string(name), body), err
}

func unmarshalHost(b []byte) (h table.Host, err error) {
	err = eachField(b, func(number protowire.Number, value []byte, n uint64) error {
		switch number {
		case fieldName:
			h.Name = string(value)
		case fieldAddr:
			a, ok := netip.AddrFromSlice(value)
			if !ok {
				return fmt.Errorf("host %q: an address of %d bytes: %w", h.Name, len(value), errState)
			}
			h.Addrs = append(h.Addrs, a)
		case fieldVIP:
			h.VIP = n != 0
		}
		return nil
	})
	if err == nil && (h.Name == "" || len(h.Addrs) == 0) {
		err = fmt.Errorf("host %q with %d addresses: %w", h.Name, len(h.Addrs), errState)
	}
	return h, err
}

// eachField calls visit for every field of a message: with its bytes, or with its number.
func eachField(b []byte, visit func(number protowire.Number, value []byte, n uint64) error) error {
	for len(b) > 0 {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("%w: %w", errState, protowire.ParseError(size))
		}
		b = b[size:]
		var value []byte
		var n uint64
		switch kind {
		case protowire.BytesType:
			value, size = protowire.ConsumeBytes(b)
		case protowire.VarintType:
			n, size = protowire.ConsumeVarint(b)
		default:
			size = protowire.ConsumeFieldValue(number, kind, b)
		}
		if size < 0 {
			return fmt.Errorf("%w: %w", errState, protowire.ParseError(size))
		}
		b = b[size:]
		if err := visit(number, value, n); err != nil {
			return err
		}
	}
	return nil
}
