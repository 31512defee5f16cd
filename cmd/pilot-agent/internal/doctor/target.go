package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"understudy.mesh/cmd/pilot-agent/internal/cli"
	"understudy.mesh/cmd/pilot-agent/internal/dnscmd"
	"understudy.mesh/cmd/pilot-agent/internal/iptablescmd"
	"understudy.mesh/iptables"
	"understudy.mesh/iptables/inspect"
	"understudy.mesh/iptables/rule"
)

// traceFrom is the sender that doctor trace was given.
type traceFrom struct {
	text     string // as given, with what is assumed
	local    bool
	uid, gid uint32
	mark     uint32
	client   netip.AddrPort // from outside: one client, or the zero value for any
	in       string
}

const wantFrom = "want for example uid:1000, uid:1000,gid:2000, outside, or a client's address"

func parseTraceFrom(s string, host iptablescmd.Host) (traceFrom, error) {
	f := traceFrom{text: s}
	head, rest, _ := strings.Cut(s, ",")
	allowed := []string{"in"}
	switch kind, _, _ := strings.Cut(head, ":"); {
	case kind == "uid":
		f.local, rest, allowed = true, s, []string{"uid", "gid", "mark"}
	case head == "outside":
	default:
		client, err := parseClient(head)
		if err != nil {
			return f, fmt.Errorf("%q: %s", s, wantFrom)
		}
		f.client = client
	}
	grouped := false
	for item := range strings.SplitSeq(rest, ",") {
		if item == "" {
			continue
		}
		key, value, _ := strings.Cut(item, ":")
		if !slices.Contains(allowed, key) {
			return f, fmt.Errorf("%q in %q: %s", item, s, wantFrom)
		}
		if err := f.set(key, value, host); err != nil {
			return f, fmt.Errorf("%q in %q: %w", item, s, err)
		}
		grouped = grouped || key == "gid"
	}
	if f.local && !grouped {
		f.gid = f.uid
		f.text += fmt.Sprintf(",gid:%d (assumed)", f.gid)
	}
	return f, nil
}

func (f *traceFrom) set(key, value string, host iptablescmd.Host) error {
	one := func(lookup func(string) (string, error)) (uint32, error) {
		ids, err := iptables.ParseIDList(value, lookup)
		if err == nil && len(ids) != 1 {
			err = errors.New("want one id")
		}
		if err != nil {
			return 0, err
		}
		return ids[0], nil
	}
	var err error
	switch key {
	case "uid":
		f.uid, err = one(host.LookupUser)
	case "gid":
		f.gid, err = one(host.LookupGroup)
	case "mark":
		var mark uint64
		mark, err = strconv.ParseUint(value, 0, 32)
		f.mark = uint32(mark)
	case "in":
		f.in = value
		if value == "" {
			err = errors.New("want the name of an interface")
		}
	}
	return err
}

func parseClient(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	a, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), err
}

// flow is the packet to one address; ok is false if the client has another IP version.
func (f traceFrom) flow(to traceTo, a netip.Addr) (flow inspect.Flow, ok bool) {
	flow = inspect.Flow{
		Local: f.local, UID: f.uid, GID: f.gid, Mark: f.mark,
		Proto: to.proto, Src: f.client, Dst: netip.AddrPortFrom(a, to.port), In: f.in,
	}
	return flow, !f.client.IsValid() || f.client.Addr().Is4() == a.Is4()
}

// traceTo is the destination that doctor trace was given.
type traceTo struct {
	text  string
	proto rule.Proto
	host  string
	port  uint16
	addrs []netip.Addr
	said  string // how the addresses were found
}

func parseTraceTo(s string) (traceTo, error) {
	to := traceTo{text: s, proto: rule.TCP}
	rest := s
	if scheme, after, ok := strings.Cut(s, "://"); ok {
		to.proto, rest = rule.Proto(scheme), after
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil || host == "" || to.proto != rule.TCP && to.proto != rule.UDP {
		return to, fmt.Errorf("%q: want for example tcp://10.1.2.3:80, tcp://[2001:db8::1]:80, udp://8.8.8.8:53 or tcp://reviews.example:9080", s)
	}
	if to.port, err = iptables.ParsePort(port); err != nil {
		return to, err
	}
	to.host = host
	if a, err := netip.ParseAddr(host); err == nil {
		to.addrs = []netip.Addr{a.Unmap()}
	}
	return to, nil
}

// resolver finds the addresses of a name.
type resolver struct {
	pod    func() ([]netip.Addr, error)
	agent  func(ctx context.Context, name string) (addrs []netip.Addr, source string, err error)
	system func(ctx context.Context, name string) ([]netip.Addr, error)
}

func (to *traceTo) resolve(ctx context.Context, r resolver) error {
	if len(to.addrs) > 0 {
		return nil
	}
	if to.host == "pod" { // its own addresses
		addrs, err := r.pod()
		to.addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() || a.Unmap() == envoyAddress })
		if err == nil && len(to.addrs) == 0 {
			err = errors.New("the pod has no address")
		}
		return err
	}
	addrs, source, agentErr := r.agent(ctx, to.host)
	if agentErr == nil && len(addrs) > 0 {
		to.addrs, to.said = addrs, fmt.Sprintf("%s is %s, says the agent's DNS (%s)", to.host, enumerate(addrs), source)
	} else {
		addrs, err := r.system(ctx, to.host)
		if err != nil {
			return errors.Join(fmt.Errorf("find the address of %s by resolv.conf: %w", to.host, err), agentErr)
		}
		why := "it has none there"
		if agentErr != nil {
			why = agentErr.Error()
		}
		to.addrs, to.said = addrs, fmt.Sprintf("%s is %s, by resolv.conf; the agent gave no address: %s", to.host, enumerate(addrs), why)
	}
	to.addrs = oneOfEach(to.addrs)
	return nil
}

// envoyAddress is the address of lo for Envoy's connections to the application.
var envoyAddress = netip.MustParseAddr("::6")

// oneOfEach keeps the first address of each IP version: a host can have 300, and the others
// take the same way unless a rule tells them apart.
func oneOfEach(addrs []netip.Addr) (out []netip.Addr) {
	for _, want4 := range []bool{true, false} {
		if i := slices.IndexFunc(addrs, func(a netip.Addr) bool { return a.Unmap().Is4() == want4 }); i >= 0 {
			out = append(out, addrs[i].Unmap())
		}
	}
	return out
}

func traceResolver(e *cli.Env, host iptablescmd.Host) resolver {
	return resolver{
		pod: host.Addresses,
		agent: func(ctx context.Context, name string) ([]netip.Addr, string, error) {
			return dnscmd.Addresses(ctx, e.Client().OpenStatus, name)
		},
		system: func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		},
	}
}
