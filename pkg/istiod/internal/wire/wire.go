// Package wire reads what of istiod's messages the agent itself acts on, as bytes.
package wire

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"understudy.mesh/dnsproxy/table"
)

// Fields of istio.networking.nds.v1: a NameTable is a map of host names to a NameInfo each (pkg/dns/proto/nds.proto).
const (
	fieldTable protowire.Number = 1

	fieldKey   protowire.Number = 1 // of an entry of the map
	fieldValue protowire.Number = 2

	fieldIP        protowire.Number = 1
	fieldRegistry  protowire.Number = 2
	fieldShortName protowire.Number = 3
	fieldNamespace protowire.Number = 4
	fieldAltHost   protowire.Number = 5
)

// kubernetes is the registry whose hosts have short names.
const kubernetes = "Kubernetes"

// nameInfo is what a table says of one host.
type nameInfo struct {
	host                           string // in lower case
	place                          int    // in the table
	addrs                          []netip.Addr
	registry, shortName, namespace string
	altHosts                       []string
}

// Pod is whose names are answered in their short forms.
type Pod struct {
	Namespace string
	// Domain is the cluster's with "svc" before it, below which short forms lead: svc.cluster.local.
	Domain string
}

// Names reads a name table, and returns the names that are answered in a pod, sorted. A host's own name goes before
// another's short form of the same.
func Names(b []byte, pod Pod) ([]table.Host, error) {
	infos, err := parseTable(b)
	if err != nil {
		return nil, fmt.Errorf("read the name table: %w", err)
	}
	list := make([]table.Host, 0, len(infos))
	add := func(name string, addrs []netip.Addr) {
		if name != "" && len(addrs) > 0 {
			list = append(list, table.Host{Name: name, Addrs: addrs})
		}
	}
	for _, info := range infos {
		if name := strings.TrimSuffix(info.host, "."); name == info.host || info.registry != kubernetes {
			add(name, info.addrs)
		}
	}
	for _, info := range infos {
		for _, name := range info.short(pod) {
			add(name, info.addrs)
		}
	}
	byName := func(a, b table.Host) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(list, byName) { // as it is where no host has other names
		slices.SortStableFunc(list, byName)
	}
	return slices.CompactFunc(list, func(a, b table.Host) bool { return a.Name == b.Name }), nil
}

// parseTable returns what a table says of its hosts, sorted; of one that it has twice, the last counts.
func parseTable(b []byte) ([]nameInfo, error) {
	count := 0
	err := eachField(b, func(number protowire.Number, _ []byte) error {
		if number == fieldTable {
			count++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	infos := make([]nameInfo, 0, count)
	err = eachField(b, func(number protowire.Number, value []byte) error {
		if number != fieldTable {
			return nil
		}
		info, err := parseEntry(value)
		if err == nil && info.host != "" {
			info.place = len(infos)
			infos = append(infos, info)
		}
		return err
	})
	lastFirst := func(a, b nameInfo) int { return cmp.Or(strings.Compare(a.host, b.host), b.place-a.place) }
	if !slices.IsSortedFunc(infos, lastFirst) {
		slices.SortFunc(infos, lastFirst)
	}
	return slices.CompactFunc(infos, func(a, b nameInfo) bool { return a.host == b.host }), err
}

// short are the other names of a host, as Istio's agent answers them: those that the pod's search domains make of it are not
// among them, for they are cut off when somebody asks.
func (i nameInfo) short(pod Pod) []string {
	if i.registry != kubernetes || pod.Domain == "" || !strings.HasSuffix(i.host, strings.ToLower(pod.Domain)) {
		return nil
	}
	var names []string
	if i.shortName != "" && i.namespace != "" {
		names = append(names, i.shortName+"."+i.namespace, i.shortName+"."+i.namespace+".svc")
		if i.namespace == pod.Namespace {
			names = append(names, i.shortName)
		}
	}
	names = append(names, i.altHosts...)
	for k, name := range names {
		names[k] = strings.ToLower(strings.TrimSuffix(name, "."))
	}
	return names
}

func parseEntry(b []byte) (info nameInfo, err error) {
	host := ""
	err = eachField(b, func(number protowire.Number, value []byte) error {
		switch number {
		case fieldKey:
			host = strings.ToLower(string(value))
		case fieldValue:
			info, err = parseInfo(value)
			return err
		}
		return nil
	})
	info.host = host
	return info, err
}

func parseInfo(b []byte) (info nameInfo, err error) {
	err = eachField(b, func(number protowire.Number, value []byte) error {
		switch number {
		case fieldIP:
			if a, err := netip.ParseAddr(string(value)); err == nil { // what is no address leads nowhere
				info.addrs = append(info.addrs, a.Unmap())
			}
		case fieldRegistry:
			info.registry = string(value)
		case fieldShortName:
			info.shortName = string(value)
		case fieldNamespace:
			info.namespace = string(value)
		case fieldAltHost:
			info.altHosts = append(info.altHosts, string(value))
		}
		return nil
	})
	return info, err
}

// errNames says that a table is not what it ought to be.
var errNames = errors.New("not a message")

// eachField calls visit for each field of a message that has bytes, and skips the others.
func eachField(b []byte, visit func(number protowire.Number, value []byte) error) error {
	for len(b) > 0 {
		number, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("%w: %w", errNames, protowire.ParseError(size))
		}
		b = b[size:]
		if kind != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(number, kind, b); size < 0 {
				return fmt.Errorf("%w: %w", errNames, protowire.ParseError(size))
			}
			b = b[size:]
			continue
		}
		value, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return fmt.Errorf("%w: %w", errNames, protowire.ParseError(size))
		}
		b = b[size:]
		if err := visit(number, value); err != nil {
			return err
		}
	}
	return nil
}

// ResourceName is the name of one of Envoy's resources: in each of its types that is field 1. "" is of a message without one, or of
// what is none, which Relay.Give refuses.
func ResourceName(body []byte) (name string) {
	err := eachField(body, func(number protowire.Number, value []byte) error {
		if number == 1 {
			name = string(value)
		}
		return nil
	})
	if err != nil {
		return ""
	}
	return name
}
