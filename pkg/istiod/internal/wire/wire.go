// Package wire reads what of istiod's messages the agent itself acts on, as bytes.
package wire

import (
	"errors"
	"fmt"
	"maps"
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
	infos := make(map[string]nameInfo)
	err := eachField(b, func(number protowire.Number, value []byte) error {
		if number != fieldTable {
			return nil
		}
		host, info, err := parseEntry(value)
		if err == nil && host != "" {
			infos[strings.ToLower(host)] = info
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the name table: %w", err)
	}
	hosts := make(map[string]table.Host, len(infos))
	for host, info := range infos {
		if name := strings.TrimSuffix(host, "."); len(info.addrs) > 0 && (name == host || info.registry != kubernetes) {
			hosts[name] = table.Host{Name: name, Addrs: info.addrs}
		}
	}
	for _, host := range slices.Sorted(maps.Keys(infos)) {
		info := infos[host]
		for _, name := range info.short(host, pod) {
			if _, taken := hosts[name]; !taken && len(info.addrs) > 0 {
				hosts[name] = table.Host{Name: name, Addrs: info.addrs}
			}
		}
	}
	list := make([]table.Host, 0, len(hosts))
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		list = append(list, hosts[name])
	}
	return list, nil
}

// short are the other names of a host, as Istio's agent answers them: those that the pod's search domains make of it are not
// among them, for they are cut off when somebody asks.
func (i nameInfo) short(host string, pod Pod) []string {
	if i.registry != kubernetes || pod.Domain == "" || !strings.HasSuffix(host, strings.ToLower(pod.Domain)) {
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

func parseEntry(b []byte) (host string, info nameInfo, err error) {
	err = eachField(b, func(number protowire.Number, value []byte) error {
		switch number {
		case fieldKey:
			host = string(value)
		case fieldValue:
			info, err = parseInfo(value)
			return err
		}
		return nil
	})
	return host, info, err
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
