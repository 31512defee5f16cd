package envoyfilter

import (
	"fmt"
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	networking "istio.io/api/networking/v1alpha3"
)

// RefusedError says that a document makes a listener that cannot be.
type RefusedError struct {
	Filter *Filter
	Reason string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("%s: %s", e.Filter.Title(), e.Reason)
}

// run is the patching of one listener.
type run struct {
	set      *Set
	listener *listenerv3.Listener
	context  networking.EnvoyFilter_PatchContext
	virtual  bool   // it captures: portNumber is about its chains
	alias    string // what Istio calls it
	notes    map[*entry]*Note
	// origins are the patches that brought a filter, and merged into it; "" of one that is not theirs.
	origins    map[proto.Message]source
	extensions []Extension
}

// Patched is what patches did to a listener.
type Patched struct {
	Notes      []Note
	Extensions []Extension // which it names
}

// Patch applies the set to a listener, but for those of its filter chains of which sealed says so, and returns what each
// patch did to it or where it failed to match, nothing if no patch is for the listener: it is as it was then. virtual says
// that the listener is one that captures. The error is a *RefusedError, after which the listener is of no use.
func (s *Set) Patch(l *listenerv3.Listener, virtual bool, sealed func(*listenerv3.FilterChain) bool) (out Patched, err error) {
	if s == nil {
		return out, nil
	}
	r := run{
		set: s, listener: l, virtual: virtual, alias: alias(l), context: networking.EnvoyFilter_SIDECAR_OUTBOUND,
		notes: map[*entry]*Note{}, origins: map[proto.Message]source{},
	}
	if l.GetTrafficDirection() == corev3.TrafficDirection_INBOUND {
		r.context = networking.EnvoyFilter_SIDECAR_INBOUND
	}
	plugs := len(s.networkPlugins)+len(s.httpPlugins) > 0
	if !plugs && !slices.ContainsFunc(s.network, r.concerns) && !slices.ContainsFunc(s.http, r.concerns) {
		return out, nil
	}
	chains := l.GetFilterChains()
	if c := l.GetDefaultFilterChain(); c != nil {
		chains = append(slices.Clip(chains), c)
	}
	for _, chain := range chains {
		if len(chain.GetFilters()) == 0 || sealed(chain) {
			continue
		}
		if err := r.chain(chain); err != nil {
			return out, err
		}
	}
	out = Patched{Notes: make([]Note, 0, len(r.notes)), Extensions: r.extensions}
	for _, e := range s.entries {
		if n := r.notes[e]; n != nil {
			out.Notes = append(out.Notes, *n)
		}
	}
	return out, nil
}

// alias is Istio's name for the HTTP listener of an address: that of the port, which all hosts share there.
func alias(l *listenerv3.Listener) string {
	chains, at := l.GetFilterChains(), l.GetAddress().GetSocketAddress()
	if l.GetBindToPort().GetValue() || len(chains) != 1 || len(chains[0].GetFilters()) != 1 || chains[0].GetFilters()[0].GetName() != connectionManager {
		return ""
	}
	if addr, err := netip.ParseAddr(at.GetAddress()); err != nil || addr.Is6() {
		return fmt.Sprintf("[::]_%d", at.GetPortValue())
	}
	return fmt.Sprintf("0.0.0.0_%d", at.GetPortValue())
}

// chain applies the patches of network filters, and within connection managers those of HTTP filters. As istiod does, it
// first adds and removes, and then merges into what is there.
func (r *run) chain(c *listenerv3.FilterChain) error {
	c.Filters = plugged(r, r.set.networkPlugins, c, c.Filters)
	for _, e := range r.set.network {
		if e.operation == networking.EnvoyFilter_Patch_MERGE || !r.concerns(e) || !r.inChain(e, c) {
			continue
		}
		var done bool
		c.Filters, done = edit(r, c.Filters, e, networkAnchor(e), func(f *listenerv3.Filter) bool { return sameNetwork(f.GetName(), e) })
		r.tell(e, done, levelNetwork, func() string { return place(r.listener, c) + " has no " + wanted(e) + nearby(c.Filters) })
		if !done {
			continue
		}
		if err := settle(e, place(r.listener, c), "proxy", c.Filters, endsConnection); err != nil {
			return err
		}
	}
	for _, f := range c.Filters {
		for _, e := range r.set.network {
			if e.operation != networking.EnvoyFilter_Patch_MERGE || !r.concerns(e) || !r.inChain(e, c) {
				continue
			}
			if !sameNetwork(f.GetName(), e) {
				r.tell(e, false, levelNetwork, func() string { return place(r.listener, c) + " has no " + wanted(e) + nearby(c.Filters) })
				continue
			}
			reason := r.merge(f, e)
			r.tell(e, reason == "", levelMerge, func() string { return place(r.listener, c) + ": " + f.GetName() + ": " + reason })
		}
		if networkName(f.GetName()) == connectionManager {
			if err := r.manager(c, f); err != nil {
				return err
			}
		}
	}
	return r.discoverNetwork(c.Filters)
}

// manager applies the patches of HTTP filters to a connection manager.
func (r *run) manager(c *listenerv3.FilterChain, f *listenerv3.Filter) error {
	origin, touched := r.origins[f], r.hasPlugin(r.set.httpPlugins, c)
	if origin.name == "" && !touched && !slices.ContainsFunc(r.set.http, func(e *entry) bool { return r.concerns(e) && r.inChain(e, c) }) {
		return nil
	}
	m := &hcmv3.HttpConnectionManager{}
	if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
		return nil // of a patch, and Envoy's alone to understand
	}
	if origin.name != "" { // a patch brought it, or something in it
		for i, h := range m.HttpFilters {
			r.origins[h] = source{fmt.Sprintf("%s/%d", origin.name, i), origin.document}
		}
	}
	m.HttpFilters = plugged(r, r.set.httpPlugins, c, m.HttpFilters)
	for _, e := range r.set.http {
		if !r.concerns(e) || !r.inChain(e, c) {
			continue
		}
		if !sameNetwork(f.GetName(), e) {
			r.tell(e, false, levelNetwork, func() string { return place(r.listener, c) + " has no " + wanted(e) + nearby(c.Filters) })
			continue
		}
		if e.operation == networking.EnvoyFilter_Patch_MERGE {
			continue
		}
		var done bool
		m.HttpFilters, done = edit(r, m.HttpFilters, e, httpAnchor(e), func(h *hcmv3.HttpFilter) bool { return sameHTTP(h.GetName(), e) })
		r.tell(e, done, levelHTTP, func() string { return place(r.listener, c) + " has no " + wanted(e) + nearby(m.HttpFilters) })
		if !done {
			continue
		}
		touched = true
		if err := settle(e, place(r.listener, c), "router", m.HttpFilters, endsRequest); err != nil {
			return err
		}
	}
	if merged := r.mergeHTTP(c, f, m); !merged && !touched && origin.name == "" {
		return nil
	}
	if err := r.discoverHTTP(m.HttpFilters); err != nil {
		return err
	}
	config, err := pack(m)
	if err != nil {
		return fmt.Errorf("serialize %s: %w", f.GetName(), err)
	}
	setConfig(f, config)
	return nil
}

// mergeHTTP applies the MERGE patches to each HTTP filter.
func (r *run) mergeHTTP(c *listenerv3.FilterChain, f *listenerv3.Filter, m *hcmv3.HttpConnectionManager) (merged bool) {
	for _, h := range m.HttpFilters {
		for _, e := range r.set.http {
			if e.operation != networking.EnvoyFilter_Patch_MERGE || !r.concerns(e) || !r.inChain(e, c) || !sameNetwork(f.GetName(), e) {
				continue
			}
			if !sameHTTP(h.GetName(), e) {
				r.tell(e, false, levelHTTP, func() string { return place(r.listener, c) + " has no " + wanted(e) + nearby(m.HttpFilters) })
				continue
			}
			reason := r.merge(h, e)
			r.tell(e, reason == "", levelMerge, func() string { return place(r.listener, c) + ": " + h.GetName() + ": " + reason })
			merged = merged || reason == ""
		}
	}
	return merged
}

// settle refuses what Envoy would: the filter that ends a chain comes last, and none can be without it. A REPLACE of it
// may bring another one that only Envoy knows.
func settle[F proto.Message](e *entry, where, end string, filters []F, ends func(*anypb.Any) bool) error {
	at := slices.IndexFunc(filters, func(f F) bool { _, config, _ := parts(f); return ends(config) })
	switch {
	case at >= 0 && at < len(filters)-1:
		name, _, _ := parts(filters[at+1])
		return &RefusedError{e.owner.Filter, fmt.Sprintf("%s puts %q behind the %s of %s, where Envoy takes none: use INSERT_BEFORE or INSERT_FIRST", e.operation, name, end, where)}
	case at < 0 && (len(filters) == 0 || e.operation == networking.EnvoyFilter_Patch_REMOVE):
		return &RefusedError{e.owner.Filter, fmt.Sprintf("%s leaves no %s in %s, without which Envoy takes none: REPLACE it", e.operation, end, where)}
	}
	return nil
}

// endsRequest and endsConnection say whether a configuration is of a filter that ends its chain.
func endsRequest(config *anypb.Any) bool { return config.MessageIs(&routerv3.Router{}) }

func endsConnection(config *anypb.Any) bool {
	return config.MessageIs(&tcpproxyv3.TcpProxy{}) || config.MessageIs(&hcmv3.HttpConnectionManager{})
}

// edit applies an operation to a list, at the first item that is the anchor, and says whether it did anything. Where no
// anchor is named, INSERT_BEFORE is at the beginning and INSERT_AFTER at the end; where one is named and not there, and
// for a REMOVE or REPLACE without one, nothing happens.
func edit[F proto.Message](r *run, list []F, e *entry, anchored bool, is func(F) bool) ([]F, bool) {
	added := func() F {
		f := proto.Clone(e.value).(F) // what is there may yet be merged into
		r.origins[f] = e.source()
		return f
	}
	at := slices.IndexFunc(list, is)
	switch e.operation {
	case networking.EnvoyFilter_Patch_ADD:
		return append(list, added()), true
	case networking.EnvoyFilter_Patch_INSERT_FIRST:
		return slices.Insert(list, 0, added()), true
	case networking.EnvoyFilter_Patch_INSERT_BEFORE:
		if !anchored {
			return slices.Insert(list, 0, added()), true
		}
		if at >= 0 {
			return slices.Insert(list, at, added()), true
		}
	case networking.EnvoyFilter_Patch_INSERT_AFTER:
		if !anchored {
			return append(list, added()), true
		}
		if at >= 0 {
			return slices.Insert(list, at+1, added()), true
		}
	case networking.EnvoyFilter_Patch_REPLACE:
		if anchored && at >= 0 {
			list[at] = added()
			return list, true
		}
	case networking.EnvoyFilter_Patch_REMOVE:
		if anchored && at >= 0 {
			return slices.DeleteFunc(list, is), true
		}
	}
	return list, false
}

// merge merges the value of a patch into a filter, within its typed configuration; reason says why it could not.
func (r *run) merge(filter proto.Message, e *entry) (reason string) {
	_, config, _ := parts(filter)
	name, more, _ := parts(e.value)
	if config == nil {
		return "it has no typedConfig to merge into"
	}
	if more != nil {
		merged, err := mergeAny(config, more)
		if err != nil {
			return err.Error()
		}
		setConfig(filter, merged)
	}
	if name != "" {
		rename(filter, name)
	}
	origin := e.source() // what it adds within is of it
	if before := r.origins[filter]; before.name != "" {
		origin = source{before.name + "+" + origin.name, before.document}
	}
	r.origins[filter] = origin
	return ""
}

func rename(filter proto.Message, name string) {
	switch f := filter.(type) {
	case *hcmv3.HttpFilter:
		f.Name = name
	case *listenerv3.Filter:
		f.Name = name
	}
}
